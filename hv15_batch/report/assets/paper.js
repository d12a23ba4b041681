/* Paper: light colours, open folds and whole tables while a page is printed, and as it was after. */
(function () {
  "use strict";
  var hv15 = (window.hv15 = window.hv15 || {});
  var isOn = false;
  var opened = []; // folds that were closed before

  function set(on) {
    if (on === isOn) return;
    isOn = on;
    document.documentElement.classList.toggle("printing", on);
    document.dispatchEvent(new Event("hv15-paper"));
    if (on) opened = Array.from(document.querySelectorAll("main details:not([open]), header details:not([open])"));
    opened.forEach(function (fold) { fold.open = on; });
    // Words are cut only in a table that is too wide without that.
    document.querySelectorAll(".scroll").forEach(function (table) {
      table.classList.remove("tight");
      table.classList.toggle("tight", on && table.scrollWidth > table.clientWidth);
    });
  }

  window.addEventListener("beforeprint", function () { set(true); });
  window.addEventListener("afterprint", function () { set(false); });
  hv15.paper = { set: set, isOn: function () { return isOn; } };
})();
