/* The large view: one clip, or two side by side, driven by keys. */
(function () {
  "use strict";
  const hv15 = (window.hv15 = window.hv15 || {});
  let dialog = null;
  let parts = null;
  let current = null; // the clip that keys rate and change
  let kept = null; // the clip beside it, at the left
  let clock = null;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function buttonOf(text, label, action) {
    const button = make("button", "", text);
    button.type = "button";
    button.title = label;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", action);
    return button;
  }

  function build() {
    dialog = make("dialog", "large");
    dialog.setAttribute("role", "dialog");
    dialog.setAttribute("aria-modal", "true");
    dialog.setAttribute("aria-labelledby", "large-title");
    parts = {
      title: make("h2", ""), place: make("span", "quiet"), stage: make("div", "stage"),
      at: make("span", "at"), prompt: make("p", "large-prompt"), facts: make("p", "facts"),
      rating: make("div", "large-rating"),
    };
    parts.title.id = "large-title";
    parts.prompt.dir = "auto";
    parts.prompt.tabIndex = 0; // a long one scrolls
    parts.prompt.setAttribute("role", "region");
    parts.prompt.setAttribute("aria-label", "Prompt");
    parts.play = buttonOf("Play", "Play or pause (space)", () => clock && clock.toggle());
    parts.play.className = "verb";
    parts.beside = buttonOf("Beside", "Keep this clip beside the next (b)", toggleBeside);
    parts.beside.setAttribute("aria-pressed", "false");
    const head = make("div", "large-head");
    head.append(parts.title, parts.place, buttonOf("✕", "Close (Esc)", () => dialog.close()));
    const keys = make("div", "keys");
    keys.append(
      buttonOf("←", "Previous clip (left)", () => go(-1)), buttonOf("→", "Next clip (right)", () => go(1)),
      buttonOf("↑", "Previous seed (up)", () => goSeed(-1)), buttonOf("↓", "Next seed (down)", () => goSeed(1)),
      parts.play,
      buttonOf("−1", "One frame back (comma)", () => clock && clock.step(-1)),
      buttonOf("+1", "One frame on (full stop)", () => clock && clock.step(1)),
      parts.at, parts.beside, parts.rating,
    );
    const foot = make("div", "large-foot");
    foot.append(keys, parts.facts, parts.prompt);
    dialog.append(head, parts.stage, foot);
    // On the document: what had the focus may have been replaced, and the keys go to the body.
    document.addEventListener("keydown", (event) => dialog.open && onKey(event));
    dialog.addEventListener("close", onClose);
    document.body.append(dialog);
  }

  const isShowable = (clip) => Boolean(clip.file && clip.isPlayable);
  const shown = () => hv15.clips.shown.filter(isShowable);

  function paneOf(clip, isKept) {
    const pane = make("figure", "pane");
    const frame = make("div", "frame");
    frame.style.setProperty("--shape", clip.shape || 16 / 9);
    const video = document.createElement("video");
    video.muted = true;
    video.playsInline = true;
    video.preload = "auto";
    video.loop = false; // the clock begins the next round
    if (clip.poster) video.poster = clip.poster;
    video.src = clip.file;
    video.setAttribute("aria-label", "Clip " + clip.id);
    video.addEventListener("error", () => frame.classList.add("broken"));
    video.addEventListener("click", () => clock.toggle());
    frame.append(video);
    pane.append(frame);
    if (kept) {
      pane.append(make("figcaption", "", (isKept ? "left: " : "right: ") + nameOf(clip)));
    }
    return pane;
  }

  const nameOf = (clip) => (clip.runName ? clip.runName + ", " : "") + clip.rowId + ", seed " + clip.seed;

  function factsOf(clip) {
    const facts = Object.keys(clip.facts).map((unit) => clip.facts[unit] + " " + unit);
    const different = Object.keys(clip.differences).map((name) => name + " " + clip.differences[name]);
    const tags = Object.keys(clip.tags).map((name) => name + ": " + clip.tags[name]);
    const problem = clip.problem ? [clip.status + ": " + clip.problem] : [];
    return problem.concat(facts, different, tags).map((text) => make("span", "fact", text));
  }

  function tell() {
    if (!clock) return; // closed; a video may still have something to say
    parts.at.textContent = "frame " + (clock.frame() + 1) + " of " + clock.frames();
    parts.play.textContent = clock.isPlaying() ? "Pause" : "Play";
  }

  function show(clip, isPlayed) {
    const wasPlaying = clock ? clock.isPlaying() : isPlayed;
    if (clock) clock.stop();
    current = clip;
    const clips = kept && kept !== clip ? [kept, clip] : [clip];
    const panes = clips.map((one) => paneOf(one, one === kept));
    parts.stage.replaceChildren(...panes);
    parts.stage.classList.toggle("two", panes.length === 2);
    const list = shown();
    parts.title.textContent = nameOf(clip);
    parts.place.textContent = (list.indexOf(clip) + 1 || "–") + " of " + list.length;
    parts.facts.replaceChildren(...factsOf(clip));
    parts.prompt.textContent = clip.prompt;
    parts.rating.replaceChildren(...(clip.isDone ? [hv15.gallery.ratingOf(clip)] : []));
    parts.beside.setAttribute("aria-pressed", String(Boolean(kept)));
    clock = hv15.clock.make(panes.map((pane) => pane.querySelector("video")), clip.fps, clip.frames, tell);
    tell();
    if (wasPlaying) clock.play();
  }

  function go(by) {
    const list = shown();
    const place = list.indexOf(current);
    let next = list[place < 0 ? 0 : place + by];
    if (next && next === kept) next = list[place + 2 * by];
    if (next) show(next);
  }

  /* The seeds of the same prompt, whatever the gallery is sorted by. */
  function goSeed(by) {
    const list = shown().filter((clip) => clip.row === current.row);
    list.sort((a, b) => (BigInt(a.seed) < BigInt(b.seed) ? -1 : BigInt(a.seed) > BigInt(b.seed) ? 1 : a.run - b.run));
    const place = list.indexOf(current);
    let next = list[place + by];
    if (next && next === kept) next = list[place + 2 * by];
    if (next) show(next);
  }

  function toggleBeside() {
    if (kept) {
      kept = null;
      show(current);
      return;
    }
    const list = shown();
    const place = list.indexOf(current);
    const other = list[place + 1] || list[place - 1];
    if (!other) return;
    kept = current;
    show(other);
  }

  const ACTIONS = {
    ArrowLeft: () => go(-1), ArrowRight: () => go(1),
    ArrowUp: () => goSeed(-1), ArrowDown: () => goSeed(1),
    ",": () => clock.step(-1), ".": () => clock.step(1),
    b: toggleBeside,
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") {
      if (event.target.closest("button")) return; // it is pressed
      clock.toggle();
    } else if (hv15.rateByKey(event, current)) {
      return;
    } else if (ACTIONS[event.key]) {
      ACTIONS[event.key]();
    } else {
      return;
    }
    event.preventDefault();
  }

  function onClose() {
    const last = clock;
    clock = null;
    last.stop();
    kept = null;
    parts.stage.replaceChildren();
    hv15.clips.settle(current);
  }

  function open(clip) {
    if (!isShowable(clip)) return;
    if (!dialog) build();
    kept = null;
    if (!dialog.open) dialog.showModal();
    show(clip, true);
    parts.play.focus();
  }

  document.addEventListener("hv15-ratings", function (event) {
    const block = dialog && dialog.open && parts.rating.querySelector(".rating");
    if (block && event.detail === current) hv15.gallery.showRating(current, block);
  });

  hv15.large = {
    open: open,
    isOpen: () => Boolean(dialog && dialog.open),
    /* A clip has changed; the one that is shown stays until another is chosen. */
    renew: function (before, clip) {
      if (before === kept) kept = clip;
      if (before !== current) return;
      current = clip;
      if (!dialog || !dialog.open) return;
      const active = document.activeElement;
      const focused = parts.rating.contains(active) ? active.className : "";
      parts.rating.replaceChildren(...(clip.isDone ? [hv15.gallery.ratingOf(clip)] : []));
      const again = focused && parts.rating.getElementsByClassName(focused)[0];
      if (again) again.focus();
    },
  };
})();
