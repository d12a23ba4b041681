/* Stars: which clips a person likes, and the manifest that renders them again. */
(function () {
  "use strict";
  var hv15 = (window.hv15 = window.hv15 || {});
  /* The folder is known from the page's own address: one store serves all pages on a disk. */
  var KEY = "hv15-stars:" + decodeURIComponent(location.pathname).replace(/[^/]*$/, "");
  var starred = new Set(read());

  function read() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) || [];
    } catch (error) {
      return []; // storage is blocked: stars live as long as the page
    }
  }

  function save() {
    try {
      localStorage.setItem(KEY, JSON.stringify(Array.from(starred)));
    } catch (error) {
      /* as above */
    }
  }

  function toggle(id) {
    if (!starred.delete(id)) starred.add(id);
    save();
    return starred.has(id);
  }

  /* RFC 4180. Always quoted, so that nothing in a prompt can be taken for structure. */
  function cell(text) {
    return text === "" ? "" : '"' + text.replace(/"/g, '""') + '"';
  }

  /* One row for each row and way of rendering: its starred seeds share a cell, and it keeps its id. */
  function rows(clips) {
    var merged = new Map();
    clips.forEach(function (clip) {
      var key = JSON.stringify([clip.rowId, clip.prompt, clip.pick]);
      if (!merged.has(key)) {
        merged.set(key, Object.assign({ id: clip.rowId, prompt: clip.prompt, seeds: [] }, clip.pick));
      }
      var row = merged.get(key);
      if (row.seeds.indexOf(clip.seed) < 0) row.seeds.push(clip.seed);
    });
    var taken = new Set();
    return Array.from(merged.values()).map(function (row) {
      var id = row.id;
      for (var n = 2; taken.has(id); n++) id = row.id.slice(0, 58) + "." + n;
      taken.add(id);
      row.id = id;
      row.seed = row.seeds.join(" ");
      delete row.seeds;
      return row;
    });
  }

  /* The text of a manifest of these clips. Columns that no row fills are left out. */
  function manifest(clips) {
    var order = ["id", "prompt", "seed", "negative_prompt", "image", "height", "width", "num_frames",
      "num_inference_steps", "guidance_scale", "flow_shift", "fps"];
    var picked = rows(clips);
    var used = new Set(["id", "prompt", "seed"]);
    picked.forEach(function (row) {
      Object.keys(row).forEach(function (name) {
        if (row[name] !== "") used.add(name);
      });
    });
    var tags = Array.from(used).filter(function (name) {
      return order.indexOf(name) < 0;
    });
    var columns = order.filter(function (name) { return used.has(name); }).concat(tags.sort());
    var lines = [columns.map(function (name) { return /^\w+$/.test(name) ? name : cell(name); })];
    picked.forEach(function (row) {
      lines.push(columns.map(function (name) { return cell(row[name] || ""); }));
    });
    return lines.map(function (line) { return line.join(",") + "\r\n"; }).join("");
  }

  /* A picked row has no cell for its model, codec or type: clips of several such settings become a
     file for each, and its command types them. */
  function files(clips) {
    var byWords = new Map();
    clips.forEach(function (clip) {
      if (!starred.has(clip.id) || !clip.pick) return;
      if (!byWords.has(clip.pickWords)) byWords.set(clip.pickWords, []);
      byWords.get(clip.pickWords).push(clip);
    });
    var taken = new Set();
    return Array.from(byWords, function (entry) {
      var stem = byWords.size === 1 ? "picks" : "picks." + entry[1][0].variant;
      var name = stem;
      for (var n = 2; taken.has(name); n++) name = stem + "." + n;
      taken.add(name);
      return { name: name + ".csv", words: entry[0], text: manifest(entry[1]) };
    });
  }

  function download(clips) {
    var made = files(clips);
    made.forEach(function (file) {
      var link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([file.text], { type: "text/csv;charset=utf-8" }));
      link.download = file.name;
      link.click();
      setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
    });
    return made.map(function (file) {
      return "hv15-batch " + file.name + " " + file.words;
    });
  }

  hv15.stars = {
    has: function (id) { return starred.has(id); },
    toggle: toggle,
    download: download,
    manifest: manifest,
  };
})();
