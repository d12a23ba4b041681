/* Playing: a video element is made when a clip is to be played, and taken away after. */
(function () {
  "use strict";
  var hv15 = (window.hv15 = window.hv15 || {});
  var HOVER_MS = 120;
  var DOUBLE_MS = 220;
  var calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  function makeVideo(clip) {
    var video = document.createElement("video");
    video.muted = true;
    video.loop = true;
    video.playsInline = true;
    video.preload = "auto";
    if (clip.poster) video.poster = clip.poster;
    video.src = clip.file;
    return video;
  }

  function start(video, frame) {
    video.addEventListener("error", function () {
      frame.classList.add("broken");
    });
    frame.appendChild(video);
    video.play().catch(function () {
      /* taken away before it began, or not playable: the error event says so */
    });
  }

  function stop(frame) {
    var video = frame.querySelector("video");
    if (!video) return;
    video.removeAttribute("src");
    video.load(); // lets go of the file
    video.remove();
    frame.classList.remove("playing", "previewing");
  }

  /* Play without controls, under the button. */
  function preview(clip, frame) {
    var video = makeVideo(clip);
    video.tabIndex = -1;
    video.setAttribute("aria-hidden", "true");
    frame.classList.add("previewing");
    start(video, frame);
  }

  /* Play with controls until Escape. */
  function play(clip, frame) {
    if (!frame.querySelector("video")) preview(clip, frame);
    var video = frame.querySelector("video");
    video.controls = true;
    video.removeAttribute("tabindex");
    video.removeAttribute("aria-hidden");
    video.setAttribute("aria-label", "Clip " + clip.id);
    frame.classList.remove("previewing");
    frame.classList.add("playing");
    return video;
  }

  function close(frame) {
    stop(frame);
    var button = frame.querySelector(".play");
    if (button) button.focus();
  }

  /* The frame's picture, a button over it, and what hovering does. */
  function attach(clip, frame, button) {
    var timer = 0;
    var hover = 0;
    button.addEventListener("click", function (event) {
      clearTimeout(timer);
      clearTimeout(hover);
      if (!frame.querySelector("video")) preview(clip, frame);
      // A click may be the first of two, and controls would take the second; a key is no click.
      timer = setTimeout(function () { play(clip, frame).focus(); }, event.detail ? DOUBLE_MS : 0);
    });
    frame.addEventListener("pointerenter", function (event) {
      if (event.pointerType !== "mouse" || calm.matches || frame.querySelector("video")) return;
      hover = setTimeout(preview, HOVER_MS, clip, frame);
    });
    frame.addEventListener("pointerleave", function () {
      clearTimeout(hover);
      if (frame.classList.contains("previewing")) stop(frame);
    });
    button.addEventListener("dblclick", function () {
      clearTimeout(timer);
      stop(frame);
      hv15.large.open(clip);
    });
    button.addEventListener("keydown", function (event) {
      if (event.key !== "Enter") return;
      event.preventDefault(); // the space bar plays here
      hv15.large.open(clip);
    });
    frame.addEventListener("keydown", function (event) {
      if (event.key !== "Escape" || !frame.querySelector("video")) return;
      clearTimeout(timer);
      close(frame);
    });
  }

  hv15.player = { attach: attach, play: play };
})();
