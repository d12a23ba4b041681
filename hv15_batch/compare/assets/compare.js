// Two videos of a pair, played as one.
"use strict";

const pairs = [...document.querySelectorAll(".pair")];
const clocks = new Map(); // of the pairs that have a video

const videosOf = (pair) => [...pair.querySelectorAll("video")];

function show(pair) {
  const clock = clocks.get(pair);
  const what = videosOf(pair).length === 2 ? " both" : "";
  pair.classList.toggle("playing", clock.isPlaying());
  pair.querySelector(".verb").textContent = (clock.isPlaying() ? "Pause" : "Play") + what;
  pair.querySelector(".at").textContent = `frame ${clock.frame() + 1} of ${clock.frames()}`;
}

function pause(pair) {
  const clock = clocks.get(pair);
  if (clock && clock.isPlaying()) clock.pause();
}

/* Videos are loaded when they are first wanted. */
function load(pair) {
  for (const video of videosOf(pair)) video.preload = "auto";
  return clocks.get(pair);
}

function toggle(pair) {
  for (const other of pairs) if (other !== pair) pause(other);
  load(pair).toggle();
}

function step(pair, by) {
  load(pair).step(by);
}

/* The pair that has the focus, else the one that takes most of the window. */
function inView() {
  const focused = document.activeElement.closest(".pair");
  const visible = (pair) => {
    const box = pair.getBoundingClientRect();
    return Math.min(box.bottom, innerHeight) - Math.max(box.top, 0);
  };
  if (focused && visible(focused) > 0) return focused;
  const best = pairs.reduce((a, b) => (visible(b) > visible(a) ? b : a));
  return visible(best) > 0 ? best : null;
}

function go(by) {
  const current = inView();
  const next = current ? pairs[pairs.indexOf(current) + by] : pairs[0];
  if (!next) return;
  if (current) pause(current);
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}

for (const pair of pairs) {
  const videos = videosOf(pair);
  if (!videos.length) continue;
  const { fps, frames } = pair.dataset;
  clocks.set(pair, window.hv15.clock.make(videos, Number(fps), Number(frames), () => show(pair)));
  pair.querySelector(".play-both").addEventListener("click", () => toggle(pair));
  for (const button of pair.querySelectorAll(".step")) {
    button.addEventListener("click", () => step(pair, Number(button.dataset.step)));
  }
  for (const video of videos) {
    video.addEventListener("click", () => toggle(pair));
    video.addEventListener("error", () => video.parentNode.classList.add("broken"));
  }
}

const ACTIONS = {
  " ": toggle,
  ArrowLeft: (pair) => step(pair, -1),
  ArrowRight: (pair) => step(pair, 1),
};

document.addEventListener("keydown", (event) => {
  if (!pairs.length || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("button, a, summary") && event.key === " ") return;
  if (event.target.closest(".scroll")) return; // a table that these keys scroll
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "j" || key === "k") {
    go(key === "j" ? 1 : -1);
  } else {
    const pair = ACTIONS[key] && inView();
    if (!pair || !videosOf(pair).length) return; // space and arrows scroll as ever
    ACTIONS[key](pair);
  }
  event.preventDefault();
});
