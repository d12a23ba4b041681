/* The gallery: cards, row by row or in one order, made a few at a time so that the page answers. */
(function () {
  "use strict";
  var hv15 = (window.hv15 = window.hv15 || {});
  var SHORT = 220; // characters of a prompt that are shown before it is opened
  var FIRST = 24; // groups that are made at once
  var SLICE_MS = 10;
  var USUAL = 16 / 9; // width over height of a tile whose clip has no known size
  var TALLEST = 9 / 16; // a taller tile would fill the window
  var cards = new Map();
  var turn = 0;

  function make(tag, className, text) {
    var element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /* A prompt is only ever text. Long ones are cut, and whole on request. */
  function textBlock(text, className) {
    var block = make("div", className);
    var body = make("div", "body", text.length > SHORT ? text.slice(0, SHORT) + "…" : text);
    body.dir = "auto";
    block.appendChild(body);
    if (text.length > SHORT) {
      var button = make("button", "quiet-button", "all " + text.length.toLocaleString("en") + " characters");
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", function () {
        var isOpen = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!isOpen));
        block.classList.toggle("open", !isOpen);
        body.textContent = isOpen ? text.slice(0, SHORT) + "…" : text;
      });
      block.appendChild(button);
    }
    return block;
  }

  function frameOf(clip) {
    var frame = make("div", "frame");
    if (clip.poster) {
      var image = make("img");
      image.loading = "lazy";
      image.decoding = "async";
      image.src = clip.poster;
      image.alt = "Middle frame of clip " + clip.id;
      frame.appendChild(image);
    }
    if (clip.file && clip.isPlayable) {
      var play = make("button", "play");
      play.type = "button";
      play.setAttribute("aria-label", "Play clip " + clip.id);
      frame.appendChild(play);
      hv15.player.attach(clip, frame, play);
    } else if (clip.file) {
      var link = make("a", "open", "Open the file; browsers do not play it");
      link.href = clip.file;
      frame.appendChild(link);
    } else if (clip.isDone) {
      frame.appendChild(make("div", "none", "Browsers do not play this file"));
    } else {
      frame.appendChild(make("div", "none", clip.status));
    }
    return frame;
  }

  /* Five stars in one element: a click rates by its place, the same one again clears. */
  function ratingOf(clip) {
    var block = make("div", "rating");
    var stars = make("div", "stars");
    stars.tabIndex = 0;
    stars.setAttribute("role", "slider");
    stars.setAttribute("aria-label", "Rating of clip " + clip.id);
    stars.setAttribute("aria-valuemin", "0");
    stars.setAttribute("aria-valuemax", "5");
    var reject = make("button", "reject", "✕");
    reject.type = "button";
    reject.title = "Reject (x)";
    reject.setAttribute("aria-label", "Reject clip " + clip.id);
    block.append(stars, reject, make("span", "outdated"));
    // The arrows of a focused slider rate; after a click they go on to the next clip.
    stars.addEventListener("mousedown", function (event) {
      event.preventDefault();
      var card = stars.closest(".card");
      if (card) (card.querySelector(".play") || card.querySelector("a, button")).focus({ preventScroll: true });
    });
    stars.addEventListener("click", function (event) {
      var box = stars.getBoundingClientRect();
      var number = Math.min(5, Math.max(1, Math.ceil((event.clientX - box.left) / box.width * 5)));
      hv15.ratings.set(clip, hv15.ratings.numberOf(clip) === number ? "" : String(number));
    });
    stars.addEventListener("keydown", function (event) {
      var step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      var number = Math.min(5, Math.max(0, Math.max(hv15.ratings.numberOf(clip), 0) + step));
      hv15.ratings.set(clip, number ? String(number) : "");
    });
    reject.addEventListener("click", function () {
      var isRejected = hv15.ratings.valueOf(clip) === hv15.ratings.REJECTED;
      hv15.ratings.set(clip, isRejected ? "" : hv15.ratings.REJECTED);
    });
    showRating(clip, block);
    return block;
  }

  /* Bring a rating, on a card or in the large view, up to date. */
  function showRating(clip, block) {
    var number = Math.max(hv15.ratings.numberOf(clip), 0);
    var isRejected = hv15.ratings.valueOf(clip) === hv15.ratings.REJECTED;
    var isOutdated = hv15.ratings.isOutdated(clip);
    var stars = block.querySelector(".stars");
    stars.textContent = "★".repeat(number) + "☆".repeat(5 - number);
    stars.setAttribute("aria-valuenow", String(number));
    var text = isRejected ? "rejected" : number ? number + " of 5" : "not rated";
    stars.setAttribute("aria-valuetext", text + (isOutdated ? ", of an earlier file" : ""));
    block.querySelector(".reject").setAttribute("aria-pressed", String(isRejected));
    block.querySelector(".outdated").textContent = isOutdated ? "outdated" : "";
    block.classList.toggle("is-rated", number > 0);
    block.classList.toggle("is-outdated", isOutdated);
    var card = block.closest(".card");
    if (card) card.classList.toggle("rejected", isRejected);
  }

  function line(parts, className) {
    var block = make("p", className);
    parts.forEach(function (part) {
      block.appendChild(part);
    });
    return block;
  }

  function factsOf(clip) {
    var parts = [make("span", "seed", "seed " + clip.seed)];
    Object.keys(clip.facts).forEach(function (unit) {
      parts.push(make("span", "fact", clip.facts[unit] + " " + unit));
    });
    if (clip.isCold) parts.push(make("span", "fact", "cold"));
    if (clip.isFromLatents) parts.push(make("span", "fact", "from saved latents"));
    return line(parts, "facts");
  }

  function labelsOf(clip) {
    var parts = [];
    if (clip.status !== "ok") {
      parts.push(make("span", "status " + clip.status.replace(/ /g, "-"), clip.status));
    }
    if (clip.runName) parts.push(make("span", "chip run", clip.runName));
    if (clip.isVariant) parts.push(make("span", "status variant", "other settings"));
    Object.keys(clip.differences).forEach(function (name) {
      var chip = make("span", "chip", name + " ");
      var value = make("b", "", clip.differences[name]);
      value.dir = "auto";
      chip.appendChild(value);
      parts.push(chip);
    });
    Object.keys(clip.tags).forEach(function (name) {
      var tag = make("span", "chip tag", name + ": " + clip.tags[name]);
      tag.dir = "auto";
      parts.push(tag);
    });
    return parts.length ? line(parts, "labels") : null;
  }

  function actionsOf(clip) {
    var parts = [];
    if (clip.command) {
      var copy = make("button", "quiet-button", "copy command");
      copy.type = "button";
      copy.title = "Copy the command that makes this clip";
      copy.setAttribute("aria-label", "Copy the command that makes clip " + clip.id);
      copy.dataset.copy = clip.command;
      parts.push(copy);
    }
    if (clip.file) {
      var link = make("a", "", "file");
      link.href = clip.file;
      link.setAttribute("aria-label", "File of clip " + clip.id);
      parts.push(link);
    }
    return parts.length ? line(parts, "actions") : null;
  }

  function makeCard(clip) {
    var card = make("article", "card");
    card.id = "clip-" + (clip.run ? clip.run + "-" : "") + clip.id;
    card.setAttribute("aria-label", "Clip " + clip.id);
    card.hv15 = clip;
    card.appendChild(frameOf(clip));
    var text = make("div", "about");
    if (clip.isDone) {
      text.appendChild(ratingOf(clip));
      card.classList.toggle("rejected", hv15.ratings.valueOf(clip) === hv15.ratings.REJECTED);
    }
    text.appendChild(factsOf(clip));
    var problem = clip.problem ? textBlock(clip.problem, "problem") : null;
    [labelsOf(clip), problem, actionsOf(clip)].forEach(function (part) {
      if (part) text.appendChild(part);
    });
    card.appendChild(text);
    return card;
  }

  function cardOf(clip) {
    if (!cards.has(clip)) cards.set(clip, makeCard(clip));
    return cards.get(clip);
  }

  /* Put a clip that changed in the place of what it was; one that plays is left until it stops. */
  function renew(before, clip) {
    var old = cards.get(before);
    if (!old) return;
    if (old.isConnected && old.querySelector("video")) {
      setTimeout(renew, 1000, before, clip);
      return;
    }
    cards.delete(before);
    if (!hv15.clips.all.includes(clip)) return; // it has changed again meanwhile
    var hadFocus = old.contains(document.activeElement);
    var card = cardOf(clip);
    old.replaceWith(card);
    if (hadFocus) (card.querySelector(".play") || card.querySelector("button, a, [tabindex]")).focus();
  }

  /* Take a card away; what is below it moves up, and all else stays where it is. */
  function remove(clip) {
    var card = cards.get(clip);
    var row = card && card.closest(".row");
    if (!row) return;
    card.remove();
    var left = row.querySelectorAll(".card").length;
    if (left) row.style.setProperty("--clips", left);
    else row.remove();
  }

  /* Width over height of every tile in a row: that of its tallest clip, so that the tiles stay level. */
  function shapeOf(clips) {
    var shapes = clips.map(function (clip) { return clip.shape; }).filter(Boolean);
    return shapes.length ? Math.max(Math.min.apply(null, shapes), TALLEST) : USUAL;
  }

  /* Clips of one row, or a single one where they are sorted otherwise. */
  function groupOf(clips) {
    var row = make("section", "row");
    row.style.setProperty("--clips", clips.length);
    var head = make("div", "row-head");
    var ids = new Set(clips.map(function (clip) { return clip.rowId; }).concat(clips[0].otherIds));
    var title = make("h3", "", Array.from(ids).join(", "));
    head.appendChild(title);
    var playable = clips.filter(function (clip) { return clip.file && clip.isPlayable; });
    if (playable.length > 1) head.appendChild(playAll(clips[0], playable));
    row.appendChild(head);
    var texts = new Set(clips.map(function (clip) { return clip.prompt; }).filter(Boolean));
    texts.forEach(function (text) { row.appendChild(textBlock(text, "prompt")); });
    var originals = new Set(clips.map(function (clip) { return clip.promptOriginal; }).filter(Boolean));
    originals.forEach(function (original) {
      if (!texts.has(original)) row.appendChild(textBlock("rewritten from: " + original, "prompt quiet"));
    });
    if (clips[0].image) {
      var image = make("p", "quiet first", "first frame: " + clips[0].image);
      image.dir = "auto";
      row.appendChild(image);
    }
    var strip = make("div", "cards");
    strip.style.setProperty("--shape", shapeOf(clips));
    clips.forEach(function (clip) { strip.appendChild(cardOf(clip)); });
    row.appendChild(strip);
    return row;
  }

  function playAll(first, playable) {
    var button = make("button", "quiet-button", "play all");
    button.type = "button";
    button.setAttribute("aria-label", "Play all clips of " + first.rowId);
    button.addEventListener("click", function () {
      playable.forEach(function (clip) {
        hv15.player.play(clip, cardOf(clip).querySelector(".frame"));
      });
    });
    return button;
  }

  function grouped(clips, byRow) {
    var groups = [];
    clips.forEach(function (clip) {
      var last = groups[groups.length - 1];
      if (byRow && last && last[0].row === clip.row) last.push(clip);
      else groups.push([clip]);
    });
    return groups;
  }

  /* Show these clips; what does not fit the first screens is made while nothing else happens. */
  function show(clips, byRow) {
    var gallery = document.getElementById("gallery");
    var groups = grouped(clips, byRow);
    var mine = ++turn;
    var next = 0;
    gallery.setAttribute("aria-busy", "true");
    gallery.replaceChildren();
    function add(isDone) {
      var part = document.createDocumentFragment();
      while (next < groups.length && !isDone()) part.appendChild(groupOf(groups[next++]));
      gallery.appendChild(part);
      if (next === groups.length) gallery.setAttribute("aria-busy", "false");
    }
    function slice() {
      if (mine !== turn) return;
      var end = performance.now() + SLICE_MS;
      add(function () { return performance.now() > end; });
      if (next < groups.length) setTimeout(slice, 0);
    }
    add(function () { return next >= FIRST; });
    if (next < groups.length) setTimeout(slice, 0);
    hv15.gallery.finish = function () { // everything at once, for a jump to a clip
      if (mine === turn) add(function () { return false; });
    };
  }

  document.addEventListener("hv15-ratings", function (event) {
    var card = cards.get(event.detail);
    if (card && card.querySelector(".rating")) showRating(event.detail, card.querySelector(".rating"));
  });

  hv15.gallery = {
    show: show, cardOf: cardOf, renew: renew, remove: remove, finish: function () {},
    ratingOf: ratingOf, showRating: showRating,
  };
})();
