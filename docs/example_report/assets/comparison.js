/* The page that compares runs: its plots. */
(function () {
  "use strict";
  window.hv15.plots.show(window.hv15.data.plots);
})();
