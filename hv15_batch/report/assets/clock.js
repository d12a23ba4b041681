/* One clock for one video, or for two that are shown side by side. */
(function () {
  "use strict";
  const hv15 = (window.hv15 = window.hv15 || {});
  const DRIFT_SECONDS = 0.03; // beyond this the second video is set to where the first is
  const READY_MS = 2000; // a video that is not there by then is not waited for

  /* Resolves when a video can play from where it is, or when it is not worth waiting for. */
  function ready(video) {
    if (video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA || video.error) return null;
    return new Promise(function (resolve) {
      for (const name of ["canplay", "error"]) video.addEventListener(name, resolve, { once: true });
      setTimeout(resolve, READY_MS);
    });
  }

  /* `fps` and `frames` are those of the first; `tell` is called when what is shown changes. */
  function make(videos, fps, frames, tell) {
    let isPlaying = false;

    const first = videos[0];
    const rate = fps || 24;
    const last = () => (frames || Math.max(1, Math.round((first.duration || 0) * rate))) - 1;

    function frame() {
      const time = Math.max(...videos.map((video) => video.currentTime));
      // Half a millisecond: a frame's time is rounded in the file.
      return Math.max(0, Math.min(Math.floor((time + 5e-4) * rate), last()));
    }

    function align() {
      for (const other of videos.slice(1)) {
        if (!other.ended && first.currentTime < other.duration) other.currentTime = first.currentTime;
      }
    }

    async function play() {
      isPlaying = true;
      tell();
      const from = first.ended || frame() === last() ? 0 : first.currentTime;
      for (const video of videos) if (video.currentTime !== from) video.currentTime = from;
      await Promise.all(videos.map(ready)); // all at once, not each when it has loaded
      if (!isPlaying) return;
      for (const video of videos) video.play().catch(() => {}); // the error event says so
    }

    function pause() {
      isPlaying = false;
      for (const video of videos) video.pause();
      align();
      tell();
    }

    function step(by) {
      if (isPlaying) pause();
      const wanted = Math.max(0, Math.min(frame() + by, last()));
      // The middle of a frame: its border may be rounded to the frame before.
      for (const video of videos) video.currentTime = (wanted + 0.5) / rate;
      tell();
    }

    function stop() {
      isPlaying = false;
      for (const video of videos) {
        video.removeAttribute("src");
        video.load(); // lets go of the file
      }
    }

    for (const video of videos) {
      video.addEventListener("timeupdate", tell);
      video.addEventListener("seeked", tell);
      video.addEventListener("ended", function () {
        // The next round begins together, also where one clip is longer.
        if (isPlaying && videos.every((other) => other.ended || other.error)) play();
      });
    }
    first.addEventListener("timeupdate", function () {
      for (const other of videos.slice(1)) {
        const drift = Math.abs(first.currentTime - other.currentTime);
        if (isPlaying && !other.seeking && drift > DRIFT_SECONDS) align();
      }
    });

    return {
      play: play, pause: pause, step: step, stop: stop, frame: frame,
      toggle: function () { if (isPlaying) pause(); else play(); },
      isPlaying: function () { return isPlaying; },
      frames: function () { return last() + 1; },
    };
  }

  hv15.clock = { make: make };
})();
