// Two videos of a pair, played as one.
"use strict";

const DRIFT_SECONDS = 0.03; // beyond this B is set to where A is
const READY_MS = 2000; // a video that is not there by then is not waited for
const pairs = [...document.querySelectorAll(".pair")];

const videosOf = (pair) => [...pair.querySelectorAll("video")];
const isPlaying = (pair) => pair.classList.contains("playing");

function frameOf(pair) {
  const time = Math.max(...videosOf(pair).map((video) => video.currentTime));
  // Half a millisecond: a frame's time is rounded in the file.
  return Math.min(Math.floor((time + 5e-4) * Number(pair.dataset.fps)), pair.dataset.frames - 1);
}

function showFrame(pair) {
  pair.querySelector(".at").textContent = `frame ${frameOf(pair) + 1} of ${pair.dataset.frames}`;
}

function setPlaying(pair, isOn) {
  pair.classList.toggle("playing", isOn);
  const what = videosOf(pair).length === 2 ? " both" : "";
  pair.querySelector(".verb").textContent = (isOn ? "Pause" : "Play") + what;
}

function pause(pair) {
  if (!isPlaying(pair)) return;
  setPlaying(pair, false);
  for (const video of videosOf(pair)) video.pause();
  align(pair);
}

/* Set B to where A is, and leave it at its end where A is longer. */
function align(pair) {
  const [a, b] = videosOf(pair);
  if (b && !b.ended && a.currentTime < b.duration) b.currentTime = a.currentTime;
}

/* Resolves when a video can play from where it is, or when it is not worth waiting for. */
function ready(video) {
  video.preload = "auto";
  if (video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA || video.error) return null;
  return new Promise((resolve) => {
    for (const name of ["canplay", "error"]) video.addEventListener(name, resolve, { once: true });
    setTimeout(resolve, READY_MS);
  });
}

async function play(pair) {
  const videos = videosOf(pair);
  for (const other of pairs) if (other !== pair) pause(other);
  setPlaying(pair, true);
  const isAtEnd = frameOf(pair) === pair.dataset.frames - 1;
  const from = isAtEnd ? 0 : videos[0].currentTime;
  for (const video of videos) if (video.currentTime !== from) video.currentTime = from;
  await Promise.all(videos.map(ready)); // both at once, not each when it has loaded
  if (!isPlaying(pair)) return;
  for (const video of videos) video.play().catch(() => {}); // the error event says so
}

function toggle(pair) {
  if (isPlaying(pair)) pause(pair);
  else play(pair);
}

function step(pair, by) {
  pause(pair);
  const frame = Math.min(Math.max(frameOf(pair) + by, 0), pair.dataset.frames - 1);
  for (const video of videosOf(pair)) {
    video.preload = "auto";
    // The middle of a frame: its border may be rounded to the frame before.
    video.currentTime = (frame + 0.5) / Number(pair.dataset.fps);
  }
  showFrame(pair);
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
  pair.querySelector(".play-both").addEventListener("click", () => toggle(pair));
  for (const button of pair.querySelectorAll(".step")) {
    button.addEventListener("click", () => step(pair, Number(button.dataset.step)));
  }
  for (const video of videos) {
    video.addEventListener("click", () => toggle(pair));
    video.addEventListener("timeupdate", () => showFrame(pair));
    video.addEventListener("error", () => video.parentNode.classList.add("broken"));
    video.addEventListener("ended", () => {
      // The next round begins together, also where one clip is longer.
      if (isPlaying(pair) && videos.every((other) => other.ended || other.error)) play(pair);
    });
  }
  if (videos.length === 2) {
    const [a, b] = videos;
    a.addEventListener("timeupdate", () => {
      if (isPlaying(pair) && !b.seeking && Math.abs(a.currentTime - b.currentTime) > DRIFT_SECONDS) {
        align(pair);
      }
    });
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
