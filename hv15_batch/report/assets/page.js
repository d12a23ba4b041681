/* The page of a run: filters, sorting, copying, keys. */
(function () {
  "use strict";
  var hv15 = window.hv15;
  var clips = hv15.data.clips;
  var texts = new Map();
  var STARRED = "starred";
  var HASH = /_[0-9a-f]{8}$/;
  var SEED = /\bseed(?:\s+(\d+)\b|\s*$)/g; // the word alone is on its way to one

  function byId(id) {
    return document.getElementById(id);
  }

  function say(text) {
    var toast = byId("toast");
    toast.textContent = text;
    toast.classList.add("shown");
    clearTimeout(say.timer);
    say.timer = setTimeout(function () { toast.classList.remove("shown"); }, 6000);
  }

  /* -- filter and sort ---------------------------------------------------------------------- */

  /* Facts as they are written under a clip. */
  function chips(facts, between) {
    return Object.keys(facts).map(function (name) { return name + between + facts[name]; });
  }

  function haystack(clip) {
    if (!texts.has(clip)) {
      // Of an id's hash, in which any digit would be found, only the whole is looked for.
      var parts = [clip.prompt, clip.promptOriginal, clip.id.replace(HASH, ""), clip.rowId, clip.seed, clip.image, clip.problem];
      parts = parts.concat(clip.otherIds, chips(clip.tags, ": "), chips(clip.differences, " "));
      texts.set(clip, parts.join("\n").toLowerCase());
    }
    return texts.get(clip);
  }

  function wanted() {
    var text = byId("filter-text").value.toLowerCase();
    var seeds = [];
    text = text.replace(SEED, function (whole, seed) {
      if (seed) seeds.push(seed);
      return " ";
    });
    var words = text.split(/\s+/).filter(Boolean);
    var status = byId("filter-status").value;
    var tag = byId("filter-tag").value ? JSON.parse(byId("filter-tag").value) : null;
    return clips.filter(function (clip) {
      if (status === STARRED ? !hv15.stars.has(clip.id) : status && clip.status !== status) return false;
      if (tag && clip.tags[tag[0]] !== tag[1]) return false;
      if (seeds.length && seeds.indexOf(clip.seed) < 0) return false;
      return words.every(function (word) {
        return haystack(clip).indexOf(word) >= 0 || clip.id.toLowerCase() === word;
      });
    });
  }

  /* What a clip lacks comes last, whatever the direction. */
  function by(read, direction) {
    return function (a, b) {
      var x = read(a), y = read(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return x < y ? -direction : x > y ? direction : 0;
    };
  }

  var ORDERS = {
    finished: by(function (clip) { return clip.finished; }, -1),
    slowest: by(function (clip) { return clip.seconds; }, -1),
    fastest: by(function (clip) { return clip.seconds; }, 1),
    seed: by(function (clip) { return BigInt(clip.seed); }, 1),
  };

  var timer = 0; // of an update that waits for more letters

  function update() {
    clearTimeout(timer);
    var shown = wanted();
    var sort = byId("sort").value;
    if (ORDERS[sort]) shown.sort(ORDERS[sort]);
    hv15.gallery.show(shown, sort === "manifest");
    var all = clips.length + " clip" + (clips.length === 1 ? "" : "s");
    byId("count").textContent = shown.length === clips.length ? all : shown.length + " of " + all;
  }

  function option(value, text) {
    var item = document.createElement("option");
    item.value = value;
    item.textContent = text;
    return item;
  }

  function fillFilters() {
    var status = byId("filter-status");
    status.appendChild(option("", "any"));
    var counts = new Map();
    clips.forEach(function (clip) { counts.set(clip.status, (counts.get(clip.status) || 0) + 1); });
    counts.forEach(function (count, name) { status.appendChild(option(name, name + " (" + count + ")")); });
    status.appendChild(option(STARRED, STARRED));
    var tags = new Set();
    clips.forEach(function (clip) {
      Object.keys(clip.tags).forEach(function (name) {
        tags.add(JSON.stringify([name, clip.tags[name]]));
      });
    });
    byId("filter-tag").appendChild(option("", "any"));
    Array.from(tags).sort().forEach(function (tag) {
      byId("filter-tag").appendChild(option(tag, JSON.parse(tag).join(": ")));
    });
    byId("filter-tag-label").hidden = tags.size === 0;
  }

  function listen() {
    byId("toolbar").addEventListener("submit", function (event) { event.preventDefault(); });
    byId("filter-text").addEventListener("input", function () {
      clearTimeout(timer);
      timer = setTimeout(update, 80);
    });
    ["filter-status", "filter-tag", "sort"].forEach(function (id) {
      byId(id).addEventListener("change", update);
    });
    byId("download").addEventListener("click", function () {
      say("Saved. Render it with: " + hv15.stars.download(clips).join(" and "));
    });
    document.addEventListener("hv15-stars", countStars);
  }

  function countStars() {
    var n = clips.filter(function (clip) { return clip.pick && hv15.stars.has(clip.id); }).length;
    byId("download").disabled = n === 0;
    byId("download").textContent = n ? "Download picks.csv (" + n + ")" : "Download picks.csv";
  }

  /* -- copying ------------------------------------------------------------------------------ */

  function copy(text) {
    function done() { say("Copied: " + text); }
    function failed() { say("Copy it from here: " + text); }
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, function () { byHand(text) ? done() : failed(); });
    else if (byHand(text)) done();
    else failed();
  }

  function byHand(text) {
    var area = document.createElement("textarea");
    var before = document.activeElement;
    area.value = text;
    area.className = "hidden";
    document.body.appendChild(area);
    area.select();
    var isCopied = document.execCommand("copy");
    area.remove();
    if (before) before.focus();
    return isCopied;
  }

  document.addEventListener("click", function (event) {
    var button = event.target.closest("[data-copy]");
    if (button) copy(button.dataset.copy);
    var link = event.target.closest("[data-clip]");
    if (link) {
      event.preventDefault();
      jump(link.dataset.clip);
    }
  });

  /* The gallery is made whole first, or it would grow and push the goal away; folds are opened. */
  document.querySelectorAll(".contents a").forEach(function (link) {
    link.addEventListener("click", function () {
      hv15.gallery.finish();
      var fold = document.querySelector(link.getAttribute("href") + " > details");
      if (fold) fold.open = true;
    });
  });

  function jump(id) {
    var clip = clips.find(function (item) { return item.id === id; });
    if (!clip) return;
    byId("toolbar").reset();
    update();
    hv15.gallery.finish();
    var card = hv15.gallery.cardOf(clip);
    card.tabIndex = -1;
    card.scrollIntoView({ block: "center" });
    card.focus({ preventScroll: true });
  }

  /* -- keys --------------------------------------------------------------------------------- */

  byId("gallery").addEventListener("keydown", function (event) {
    var card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "VIDEO") return;
    if (event.key === "s" && card.querySelector(".star")) card.querySelector(".star").click();
    var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    var all = Array.from(document.querySelectorAll("#gallery .card"));
    var next = all[all.indexOf(card) + step];
    if (!next) return;
    event.preventDefault();
    var target = next.querySelector(".play") || next.querySelector("button, a");
    if (target) target.focus();
  });

  byId("toolbar").hidden = false;
  byId("hint").hidden = false;
  fillFilters();
  listen();
  countStars();
  update();
  hv15.plots.show(hv15.data.plots);
  document.documentElement.dataset.ready = String(performance.now());
})();
