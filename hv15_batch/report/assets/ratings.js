/* Ratings: 1 to 5, or x for rejected. A page from the disk keeps changes in the browser; a served
   one hands them to the server, which writes ratings.csv. */
(function () {
  "use strict";
  const hv15 = (window.hv15 = window.hv15 || {});
  const REJECTED = "x";
  const COLUMNS = ["settings_sha256", "file_sha256", "row_id", "seed", "rating", "rated_at"];
  /* The folder is known from the page's own address: one store serves all pages on a disk. */
  const KEY = "hv15-ratings:" + decodeURIComponent(location.pathname).replace(/[^/]*$/, "");
  let queue = Promise.resolve(); // one after the other, so that the last one counts
  const unsent = new Map(); // of each clip the newest that waits for its turn
  const changes = new Map(Object.entries(read()));

  function read() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) || {};
    } catch (error) {
      return {}; // storage is blocked: ratings live as long as the page
    }
  }

  function save() {
    try {
      localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(changes)));
    } catch (error) {
      /* as above */
    }
  }

  /* By the run's name: its number is its place in one command, and another in the next. */
  const keyOf = (clip) => (hv15.data.runs ? hv15.data.runs[clip.run] : clip.run) + ":" + clip.settings;

  /* The rating of a clip: what the page came with, or a change of this browser if it is newer. */
  function entryOf(clip) {
    const changed = changes.get(keyOf(clip));
    const known = clip.rating;
    if (!changed) return known;
    return known && Date.parse(known.at) >= Date.parse(changed.at) ? known : changed;
  }

  function valueOf(clip) {
    const entry = entryOf(clip);
    return entry ? entry.value : "";
  }

  /* Whether the rating is that of an earlier file of this clip. */
  function isOutdated(clip) {
    const entry = entryOf(clip);
    return Boolean(entry && entry.value && entry.sha !== clip.sha);
  }

  function numberOf(clip) {
    const value = valueOf(clip);
    return value === REJECTED ? -1 : Number(value || 0);
  }

  function changed(clip) {
    document.dispatchEvent(new CustomEvent("hv15-ratings", { detail: clip }));
  }

  /* Rate a clip; an empty value clears. */
  async function set(clip, value) {
    if (!clip.isDone || valueOf(clip) === value && !isOutdated(clip)) return;
    const key = keyOf(clip);
    const before = changes.get(key);
    const at = new Date().toISOString().replace(/\.\d+Z$/, "+00:00");
    const entry = { value: value, sha: clip.sha, at: at };
    changes.set(key, entry);
    changed(clip);
    if (!hv15.live) {
      save();
      return;
    }
    try {
      const values = {
        run: clip.run, settings_sha256: clip.settings, file_sha256: clip.sha, rating: value,
      };
      unsent.set(key, values);
      const send = function () {
        if (unsent.get(key) !== values) return null; // a newer one of this clip follows
        unsent.delete(key);
        return hv15.live.post("rate", values, true);
      };
      queue = queue.then(send, send);
      const said = await queue;
      if (said) clip.rating = said.rating;
    } catch (error) {
      if (changes.get(key) === entry && before) changes.set(key, before);
      hv15.say("Not saved: " + error.message);
    }
    if (changes.get(key) === entry) changes.delete(key); // the server's is shown from now on
    changed(clip);
  }

  /* What waits when the page is left is sent at once; the browser finishes it. */
  window.addEventListener("pagehide", function () {
    unsent.forEach((values) => hv15.live.post("rate", values, true).catch(() => {}));
    unsent.clear();
  });

  const cell = (text) => (/[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text);

  /* The text of a run's ratings.csv; ratings of clips that are not on this page are kept. What was
     cleared here is a row without a rating, which clears where the file is loaded. */
  function csv(run) {
    const rows = (hv15.data.otherRatings || []).filter((other) => other.run === run)
      .map((other) => other.cells);
    hv15.clips.all.forEach(function (clip) {
      const entry = entryOf(clip);
      if (clip.run !== run || !entry) return;
      rows.push([clip.settings, entry.sha, clip.rowId, clip.seed, entry.value, entry.at]);
    });
    return [COLUMNS].concat(rows).map((row) => row.map(cell).join(",") + "\r\n").join("");
  }

  /* Save ratings.csv, one for each run; return the names. */
  function download() {
    const names = hv15.data.runs || [""];
    return names.map(function (name, run) {
      const file = names.length > 1 ? "ratings." + name.replace(/[^\w.-]+/g, "_") + ".csv" : "ratings.csv";
      hv15.save(file, csv(run));
      return file;
    });
  }

  hv15.ratings = {
    REJECTED: REJECTED, set: set, valueOf: valueOf, numberOf: numberOf, isOutdated: isOutdated,
    csv: csv, download: download,
  };
})();
