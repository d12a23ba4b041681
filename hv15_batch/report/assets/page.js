/* The page of a run or of several: filters, sorting, copying, keys. */
(function () {
  "use strict";
  var hv15 = window.hv15;
  var clips = hv15.data.clips;
  var texts = new WeakMap();
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

  hv15.say = say;

  /* Let the browser save a text, or a blob, as a file. */
  hv15.save = function (name, text) {
    var link = document.createElement("a");
    link.href = URL.createObjectURL(text instanceof Blob ? text : new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
  };

  /* A choice that this browser remembers, for all pages of a disk or of a server. */
  function remembered(name) {
    try {
      return localStorage.getItem("hv15-" + name);
    } catch (error) {
      return null; // storage is blocked: it lives as long as the page
    }
  }

  function remember(name, value) {
    try {
      localStorage.setItem("hv15-" + name, value);
    } catch (error) {
      /* as above */
    }
  }

  /* -- filter and sort ---------------------------------------------------------------------- */

  /* Facts as they are written under a clip. */
  function chips(facts, between) {
    return Object.keys(facts).map(function (name) { return name + between + facts[name]; });
  }

  function haystack(clip) {
    if (!texts.has(clip)) {
      // Of an id's hash, in which any digit would be found, only the whole is looked for.
      var parts = [clip.prompt, clip.promptOriginal, clip.id.replace(HASH, ""), clip.rowId, clip.runName, clip.seed, clip.image, clip.problem];
      parts = parts.concat(clip.otherIds, chips(clip.tags, ": "), chips(clip.differences, " "));
      texts.set(clip, parts.join("\n").toLowerCase());
    }
    return texts.get(clip);
  }

  var RATED = {
    any: function () { return true; },
    unrated: function (clip) { return clip.isDone && hv15.ratings.valueOf(clip) === ""; },
    rejected: function (clip) { return hv15.ratings.valueOf(clip) === hv15.ratings.REJECTED; },
    outdated: hv15.ratings.isOutdated,
    picks: hv15.picks.has,
  };

  function isRated(choice) {
    return RATED[choice] || function (clip) { return hv15.ratings.numberOf(clip) >= Number(choice); };
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
    var rating = byId("filter-rating").value;
    var fits = isRated(rating);
    var hidesRejected = byId("hide-rejected").checked && rating !== "rejected";
    return clips.filter(function (clip) {
      if (status && clip.status !== status) return false;
      if (!fits(clip) || (hidesRejected && RATED.rejected(clip))) return false;
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
    rating: by(function (clip) { return hv15.ratings.numberOf(clip) || null; }, -1),
    problem: by(function (clip) { return clip.problem || null; }, 1),
  };

  var timer = 0; // of an update that waits for more letters

  function update() {
    clearTimeout(timer);
    var shown = wanted();
    var sort = byId("sort").value;
    if (ORDERS[sort]) shown.sort(ORDERS[sort]);
    hv15.clips.shown = shown;
    hv15.gallery.show(shown, sort === "manifest");
    count();
  }

  function count() {
    var all = clips.length + " clip" + (clips.length === 1 ? "" : "s");
    var shown = hv15.clips.shown.length;
    byId("count").textContent = shown === clips.length ? all : shown + " of " + all;
  }

  /* -- clips that change while the page is open --------------------------------------------- */

  function keyOf(clip) {
    return clip.run + "/" + clip.id;
  }

  function keysOf(list) {
    return list.map(keyOf).join("\n");
  }

  /* What the filters let through, in the order that is chosen. */
  function ordered() {
    var list = wanted();
    var order = ORDERS[byId("sort").value];
    return order ? list.sort(order) : list;
  }

  /* Whether two states of a clip differ in nothing but its rating. */
  function differInRating(pair) {
    function text(clip) { return JSON.stringify(Object.assign({}, clip, { rating: null })); }
    return text(pair[0]) === text(pair[1]);
  }

  function renewAll(replaced) {
    replaced.forEach(function (pair) { hv15.gallery.renew(pair[0], pair[1]); });
  }

  /* Change the list; the focus stays on its card, or goes to the one that took its place. */
  function keepFocus(change) {
    var active = document.activeElement;
    var card = active && active.closest("#gallery .card");
    var before = hv15.clips.shown.map(keyOf);
    var place = card ? before.indexOf(keyOf(card.hv15)) : -1;
    change();
    if (place < 0 || (active.isConnected && active === document.activeElement)) return;
    hv15.gallery.finish();
    var now = new Map(hv15.clips.shown.map(function (clip) { return [keyOf(clip), clip]; }));
    var goal = before.slice(place).concat(before.slice(0, place).reverse())
      .find(function (key) { return now.has(key); });
    if (goal === undefined) return;
    var next = hv15.gallery.cardOf(now.get(goal));
    var same = goal === before[place] && active.className && next.getElementsByClassName(active.className)[0];
    if (same) same.focus({ preventScroll: true });
    else focusOn(next);
  }

  function showAgain() {
    keepFocus(function () {
      var top = window.scrollY;
      update();
      if (top > 0) {
        hv15.gallery.finish();
        window.scrollTo(0, top);
      }
    });
  }

  /* Take clips that are new or changed; `order` names all of them where it is another one. */
  function take(changed, order) {
    var known = new Map(clips.map(function (clip) { return [keyOf(clip), clip]; }));
    var replaced = [];
    changed.forEach(function (clip) {
      var before = known.get(keyOf(clip));
      if (before) replaced.push([before, clip]);
      known.set(keyOf(clip), clip);
    });
    var keys = order || clips.map(keyOf);
    clips = keys.map(function (key) { return known.get(key); }).filter(Boolean);
    hv15.clips.all = clips;
    var later = new Map(replaced);
    var swapped = hv15.clips.shown.map(function (clip) { return later.get(clip) || clip; });
    var fitting = ordered();
    var fits = new Set(fitting);
    var kept = swapped.filter(function (clip) { return fits.has(clip); });
    var isRatingAlone = !order && changed.length === replaced.length && replaced.every(differInRating);
    if (hv15.large.isOpen()) {
      // Its keys go along this list; it is settled when it closes.
      hv15.clips.shown = swapped;
      renewAll(replaced);
    } else if (keysOf(fitting) === keysOf(swapped) || (isRatingAlone && kept.length === fits.size)) {
      keepFocus(function () {
        hv15.clips.shown = kept;
        // Before the cards are renewed: one that plays is renewed later.
        replaced.forEach(function (pair) { if (!fits.has(pair[1])) hv15.gallery.remove(pair[0]); });
        renewAll(replaced);
      });
    } else {
      showAgain();
    }
    replaced.forEach(function (pair) { hv15.large.renew(pair[0], pair[1]); });
    fillFilters();
    count();
    countPicks();
  }

  /* After the large view: what was rated there may not be wanted any more. */
  function settle(clip) {
    var before = hv15.clips.shown;
    if (keysOf(ordered()) !== keysOf(before)) showAgain();
    var place = before.indexOf(clip);
    var goal = before.slice(Math.max(place, 0)).concat(before.slice(0, Math.max(place, 0)).reverse())
      .find(function (one) { return hv15.clips.shown.indexOf(one) >= 0; });
    if (!goal) return;
    hv15.gallery.finish();
    focusOn(hv15.gallery.cardOf(goal));
  }

  function focusOn(card) {
    var target = card.querySelector(".play") || card.querySelector("button, a, [tabindex]");
    if (!target) return;
    target.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("hv15-ratings", function (event) {
    var clip = event.detail;
    countPicks();
    if (hv15.large.isOpen() || hv15.clips.shown.indexOf(clip) < 0) return;
    if (wanted().indexOf(clip) >= 0) return;
    var place = hv15.clips.shown.indexOf(clip);
    var card = hv15.gallery.cardOf(clip);
    var hadFocus = card.contains(document.activeElement);
    hv15.clips.shown.splice(place, 1);
    hv15.gallery.remove(clip);
    count();
    var next = hv15.clips.shown[place] || hv15.clips.shown[place - 1];
    if (hadFocus && next) focusOn(hv15.gallery.cardOf(next));
  });

  hv15.clips = { all: clips, shown: [], update: take, settle: settle };

  function option(value, text) {
    var item = document.createElement("option");
    item.value = value;
    item.textContent = text;
    return item;
  }

  function fill(select, options) {
    var chosen = select.value;
    select.replaceChildren.apply(select, options);
    select.value = chosen;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }

  function fillFilters() {
    var counts = new Map();
    clips.forEach(function (clip) { counts.set(clip.status, (counts.get(clip.status) || 0) + 1); });
    var statuses = [option("", "any")];
    counts.forEach(function (count, name) { statuses.push(option(name, name + " (" + count + ")")); });
    fill(byId("filter-status"), statuses);
    var tags = new Set();
    clips.forEach(function (clip) {
      Object.keys(clip.tags).forEach(function (name) {
        tags.add(JSON.stringify([name, clip.tags[name]]));
      });
    });
    fill(byId("filter-tag"), [option("", "any")].concat(Array.from(tags).sort().map(function (tag) {
      return option(tag, JSON.parse(tag).join(": "));
    })));
    byId("filter-tag-label").hidden = tags.size === 0;
  }

  function listen() {
    byId("toolbar").addEventListener("submit", function (event) { event.preventDefault(); });
    byId("filter-text").addEventListener("input", function () {
      clearTimeout(timer);
      timer = setTimeout(update, 80);
    });
    ["filter-status", "filter-tag", "filter-rating", "hide-rejected", "sort"].forEach(function (id) {
      byId(id).addEventListener("change", update);
    });
    byId("hide-rejected").addEventListener("change", function (event) {
      remember("hide-rejected", String(event.target.checked));
    });
    byId("least").addEventListener("change", function (event) {
      hv15.picks.setLeast(Number(event.target.value));
      remember("least", event.target.value);
      countPicks();
      if (byId("filter-rating").value === "picks") update();
    });
    byId("size").addEventListener("input", function (event) {
      setSize(event.target.value);
      remember("size", event.target.value);
    });
    byId("download").addEventListener("click", function () {
      say("Saved. Render it with: " + hv15.picks.download(clips).join(" and "));
    });
    byId("save-ratings").addEventListener("click", function () {
      say("Saved: " + hv15.ratings.download().join(", ") + ". Load it with load ratings.csv of hv15-batch view.");
    });
  }

  function setSize(pixels) {
    byId("gallery").style.setProperty("--clip", pixels + "px");
  }

  /* What this browser remembers of size, picks and rejected clips. */
  function recall() {
    var size = remembered("size");
    var slider = byId("size");
    if (size) setSize(size);
    slider.value = size || parseFloat(getComputedStyle(byId("gallery")).getPropertyValue("--clip")) * 16;
    var least = remembered("least");
    if (least) byId("least").value = least;
    if (byId("least").selectedIndex < 0) byId("least").value = "4";
    hv15.picks.setLeast(Number(byId("least").value));
    byId("hide-rejected").checked = remembered("hide-rejected") === "true";
  }

  function picked() {
    return clips.filter(hv15.picks.has);
  }

  function countPicks() {
    var n = picked().length;
    byId("download").disabled = n === 0;
    byId("download").textContent = "picks.csv (" + n + ")";
    if (byId("copy-picks")) byId("copy-picks").disabled = n === 0;
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
  document.addEventListener("click", function (event) {
    var link = event.target.closest(".contents a");
    if (!link) return;
    hv15.gallery.finish();
    var fold = document.querySelector(link.getAttribute("href") + " > details");
    if (fold) fold.open = true;
  });

  function jump(id) {
    var clip = clips.find(function (item) { return item.id === id; });
    if (!clip) return;
    ["filter-text", "filter-status", "filter-tag"].forEach(function (id) { byId(id).value = ""; });
    byId("filter-rating").value = "any";
    byId("hide-rejected").checked = false;
    update();
    hv15.gallery.finish();
    var card = hv15.gallery.cardOf(clip);
    card.tabIndex = -1;
    card.scrollIntoView({ block: "center" });
    card.focus({ preventScroll: true });
  }

  /* -- keys --------------------------------------------------------------------------------- */

  /* Rate a clip by the key that was pressed; return whether it was such a key. */
  hv15.rateByKey = function (event, clip) {
    var key = event.key.toLowerCase();
    var value = /^[1-5]$/.test(key) ? key : { 0: "", x: hv15.ratings.REJECTED }[key];
    if (value === undefined || !clip) return false;
    event.preventDefault();
    hv15.ratings.set(clip, value);
    return true;
  };

  byId("gallery").addEventListener("keydown", function (event) {
    var card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "VIDEO") return;
    if (hv15.rateByKey(event, card.hv15)) return;
    var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    var all = Array.from(document.querySelectorAll("#gallery .card"));
    var next = all[all.indexOf(card) + step];
    if (!next) return;
    event.preventDefault();
    focusOn(next);
  });

  /* -- what only a server can do ------------------------------------------------------------ */

  function listenLive() {
    byId("pattern").value = remembered("pattern") || byId("pattern").value;
    byId("copy-picks").addEventListener("click", async function () {
      var pattern = byId("pattern").value;
      remember("pattern", pattern);
      try {
        var said = await hv15.live.post("picks", {
          pattern: pattern,
          picks: picked().map(function (clip) { return { run: clip.run, settings_sha256: clip.settings }; }),
        });
        say(said.said);
      } catch (error) {
        say(error.message);
      }
    });
    byId("load-ratings").addEventListener("click", function () { byId("ratings-file").click(); });
    byId("ratings-file").addEventListener("change", async function (event) {
      var file = event.target.files[0];
      event.target.value = "";
      if (!file) return;
      try {
        say((await hv15.live.post("load", { text: await file.text() })).said);
      } catch (error) {
        say(error.message);
      }
    });
    hv15.live.open();
  }

  byId("toolbar").hidden = false;
  byId("hint").hidden = false;
  recall();
  fillFilters();
  listen();
  countPicks();
  update();
  if (hv15.live) listenLive();
  hv15.plots.update(hv15.data.plots);
  document.documentElement.dataset.ready = String(performance.now());
})();
