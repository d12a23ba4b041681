// Two videos of a pair, played as one.
"use strict";

const DRIFT_SECONDS = 0.03; // beyond this B is set to where A is
const pairs = [...document.querySelectorAll(".pair")];
let current = pairs[0] || null;

const videosOf = (pair) => [...pair.querySelectorAll("video")];
const isPlaying = (pair) => videosOf(pair).some((video) => !video.paused);

function pause(pair) {
  for (const video of videosOf(pair)) video.pause();
}

function toggle(pair) {
  const videos = videosOf(pair);
  if (isPlaying(pair)) {
    pause(pair);
    return;
  }
  for (const other of pairs) if (other !== pair) pause(other);
  current = pair;
  for (const video of videos) {
    if (video !== videos[0]) video.currentTime = videos[0].currentTime;
    video.play().catch(() => {}); // a second press paused it before it began
  }
}

function step(pair, frames) {
  pause(pair);
  const videos = videosOf(pair);
  if (!videos.length) return;
  const end = Number.isFinite(videos[0].duration) ? videos[0].duration : 0;
  const time = videos[0].currentTime + frames / Number(pair.dataset.fps);
  for (const video of videos) {
    video.preload = "auto";
    video.currentTime = Math.min(Math.max(time, 0), end);
  }
}

function go(by) {
  const next = pairs[pairs.indexOf(current) + by];
  if (!next) return;
  pause(current);
  current = next;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}

for (const pair of pairs) {
  const button = pair.querySelector(".play");
  const videos = videosOf(pair);
  button.disabled = videos.length === 0;
  button.addEventListener("click", () => toggle(pair));
  pair.addEventListener("focusin", () => { current = pair; });
  for (const video of videos) {
    video.addEventListener("click", () => toggle(pair));
    const show = () => { button.textContent = isPlaying(pair) ? "Pause both" : "Play both"; };
    video.addEventListener("play", show);
    video.addEventListener("pause", show);
  }
  if (videos.length === 2) {
    videos[0].addEventListener("timeupdate", () => {
      const [a, b] = videos;
      if (Math.abs(a.currentTime - b.currentTime) > DRIFT_SECONDS) b.currentTime = a.currentTime;
    });
  }
}

document.addEventListener("keydown", (event) => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("button, a, summary") && event.key === " ") return;
  const actions = {
    " ": () => toggle(current),
    ArrowLeft: () => step(current, -1),
    ArrowRight: () => step(current, 1),
    j: () => go(1),
    k: () => go(-1),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
