/* Plots: the library is loaded behind the page's own scripts, each plot is drawn when it comes into view. */
(function () {
  "use strict";
  var hv15 = (window.hv15 = window.hv15 || {});
  var LIBRARY = "assets/plotly.min.js";
  var PICTURES_MS = 10000; // that printing waits for pictures of clips at most
  var LETTER_PX = 6.5; // of the plots' font, on average
  var COLOURS = {
    light: ["#0b62c4", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#4d7c0f", "#475569"],
    dark: ["#6cb2ff", "#fdba74", "#5eead4", "#c4b5fd", "#fde047", "#f9a8d4", "#bef264", "#cbd5e1"],
  };
  var isDark = window.matchMedia("(prefers-color-scheme: dark)");
  var drawn = new Map();
  var library = null;

  function load() {
    library = library || new Promise(function (resolve, reject) {
      var script = document.createElement("script");
      script.src = LIBRARY;
      script.onload = resolve;
      script.onerror = function () { reject(new Error(LIBRARY + " is missing beside this page")); };
      document.head.appendChild(script);
    });
    return library;
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function axis(title, isTime) {
    return {
      title: { text: title, font: { size: 12 } },
      type: isTime ? "date" : undefined,
      gridcolor: colour("--line"),
      zerolinecolor: colour("--line"),
      linecolor: colour("--line"),
      automargin: true,
    };
  }

  /* Names beside bars are broken where they would leave less than two thirds for the bars. */
  function isNarrow(plot, place) {
    var longest = Math.max.apply(null, plot.traces.flatMap(function (trace) { return trace.y; }).map(function (name) { return name.length; }));
    return place.clientWidth < 640 || longest * LETTER_PX > place.clientWidth / 3;
  }

  /* A name in the legend; one that is wider than the plot would be cut, so it is broken. */
  function seriesName(name, place) {
    if (name.length * LETTER_PX < place.clientWidth - 60) return name;
    return name.replace(/([,:]) /g, "$1<br>");
  }

  /* Lines that a legend takes: its names stand in columns as wide as the widest. */
  function legendLines(plot, place) {
    var names = plot.traces.map(function (trace) { return seriesName(trace.name, place).split("<br>"); });
    var widest = Math.max.apply(null, names.flat().map(function (part) { return part.length; }));
    var columns = Math.max(1, Math.floor((place.clientWidth - 60) / (widest * LETTER_PX + 40)));
    var highest = Math.max.apply(null, names.map(function (parts) { return parts.length; }));
    return Math.ceil(names.length / columns) * highest;
  }

  function heightOf(plot, place) {
    if (!plot.isByName) return 280 + 17 * Math.max(0, legendLines(plot, place) - 2);
    var rows = new Set(plot.traces.flatMap(function (trace) { return trace.y; }));
    var lines = Math.max.apply(null, Array.from(rows, function (name) { return name.split(", ").length; }));
    return 90 + rows.size * (isNarrow(plot, place) ? 14 + 15 * lines : 34);
  }

  function layoutOf(plot, place) {
    var layout = {
      autosize: true,
      height: heightOf(plot, place),
      margin: { l: 8, r: 12, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, Segoe UI, Roboto, Noto Sans, sans-serif", size: 12, color: colour("--text") },
      colorway: COLOURS[isDark.matches && !hv15.paper.isOn() ? "dark" : "light"],
      barmode: plot.isStacked ? "stack" : "group",
      bargap: plot.isByName ? 0.45 : 0.15,
      showlegend: plot.traces.length > 1 && !plot.isByName,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal" },
      hovermode: plot.isByName || plot.isFree ? "closest" : "x",
      xaxis: axis(plot.over, plot.isTime),
      yaxis: axis(plot.unit, false),
    };
    if (plot.isByName) {
      layout.xaxis.rangemode = "tozero";
      layout.yaxis.type = "category";
      layout.yaxis.autorange = "reversed";
    } else {
      layout.yaxis.rangemode = "tozero";
      if (plot.isFree) {
        layout.xaxis.rangemode = "tozero";
      } else if (!plot.isTime) {
        layout.xaxis.tickformat = ",d";
        // Of few places plotly would mark halves, which round to the same number twice.
        const last = Math.max.apply(null, plot.traces.map(function (trace) { return trace.x.length; }));
        if (last <= 12) layout.xaxis.dtick = 1;
      }
    }
    layout.shapes = plot.lines.map(function (line) {
      return { type: "line", xref: "paper", x0: 0, x1: 1, y0: line.y, y1: line.y,
        line: { color: colour("--red"), width: 1.5, dash: "dash" } };
    });
    layout.annotations = plot.lines.map(function (line) {
      return { xref: "paper", x: 1, xanchor: "right", y: line.y, yanchor: "bottom", showarrow: false,
        text: line.name, font: { color: colour("--red"), size: 11 } };
    });
    if (plot.lines.length) layout.yaxis.autorangeoptions = { include: plot.lines.map(function (l) { return l.y; }) };
    return layout;
  }

  function tracesOf(plot, place) {
    return plot.traces.map(function (trace) {
      var copy = Object.assign({}, trace, { name: seriesName(trace.name, place) });
      if (plot.isByName && isNarrow(plot, place)) {
        copy.y = trace.y.map(function (name) { return name.replace(/, /g, "<br>"); });
      }
      if (trace.mode === "markers") copy.marker = { size: 7, opacity: 0.85 };
      if (trace.isMark) copy.marker = { symbol: "line-ns-open", size: 22, color: colour("--text"), line: { width: 2 } };
      copy.textposition = "none";
      return copy;
    });
  }

  function draw(plot, place) {
    return window.Plotly.react(place, tracesOf(plot, place), layoutOf(plot, place), { displayModeBar: false, responsive: true })
      .then(function () {
        drawn.set(plot, place);
        place.dataset.drawn = "true";
      });
  }

  /* A promise of a plot's picture, with its title and the colours of the page. */
  function picture(made, kind) {
    return load().then(function () {
      var layout = layoutOf(made.plot, made.place);
      layout.title = { text: made.plot.title, font: { size: 15 } };
      layout.margin = { l: 60, r: 20, t: 60 + 18 * (layout.showlegend ? made.plot.traces.length / 3 : 0), b: 50 };
      layout.paper_bgcolor = layout.plot_bgcolor = colour("--card");
      var size = { format: kind, width: 960, height: layout.height + 140, scale: kind === "png" ? 2 : 1 };
      return window.Plotly.toImage({ data: tracesOf(made.plot, made.place), layout: layout }, size);
    });
  }

  /* A figure and its plot, which is drawn when it comes into view. */
  function figureOf(plot) {
    var figure = document.createElement("figure");
    figure.id = "plot-" + plot.id;
    var title = document.createElement("h3");
    title.textContent = plot.title;
    figure.appendChild(title);
    var place = document.createElement("div");
    var caption = document.createElement("figcaption");
    caption.textContent = plot.caption;
    place.className = "plot";
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", "Plot: " + plot.title + ". " + plot.caption);
    figure.appendChild(place);
    if (plot.caption) figure.appendChild(caption);
    var made = { figure: figure, place: place, caption: caption, plot: plot };
    figure.appendChild(hv15.downloads.buttons(function () { return made.plot; }, function (kind) { return picture(made, kind); }));
    return made;
  }

  var underway = new Set();

  function paint(made) {
    var painting = load().then(function () { return draw(made.plot, made.place); }).catch(function (error) {
      made.place.textContent = error.message;
    }).finally(function () { underway.delete(painting); });
    underway.add(painting);
  }

  var shown = new Map(); // what there is, by the plot's id
  var waiting = new Map(); // of these, what was not in view yet, by its place
  var observer = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      var made = waiting.get(entry.target);
      if (!entry.isIntersecting || !made) return;
      waiting.delete(entry.target);
      observer.unobserve(entry.target);
      paint(made);
    });
  }, { rootMargin: "300px" });

  function forget(made) {
    waiting.delete(made.place);
    observer.unobserve(made.place);
    drawn.delete(made.plot);
    if (made.place.dataset.drawn) window.Plotly.purge(made.place);
    made.figure.remove();
  }

  function add(plot, before) {
    var made = figureOf(plot);
    document.getElementById("figures").insertBefore(made.figure, before);
    shown.set(plot.id, made);
    waiting.set(made.place, made);
    observer.observe(made.place);
    return made;
  }

  /* Take the values of a plot that is there; one that is drawn is drawn again. */
  function renew(made, plot) {
    drawn.delete(made.plot);
    made.plot = plot;
    made.caption.textContent = plot.caption;
    made.place.setAttribute("aria-label", "Plot: " + plot.title + ". " + plot.caption);
    if (!waiting.has(made.place)) paint(made);
  }

  /* Show the plots of now: what has not changed stays as it is. */
  function update(plots) {
    document.getElementById("plots").hidden = !plots.length;
    // Now, not at the first plot: who prints by a menu, or without a window, draws them all at once.
    if (plots.length) load().catch(function () { /* said in the place of each plot */ });
    var ids = new Set(plots.map(function (plot) { return plot.id; }));
    shown.forEach(function (made, id) {
      if (ids.has(id)) return;
      forget(made);
      shown.delete(id);
    });
    plots.forEach(function (plot, n) {
      var made = shown.get(plot.id);
      var place = document.getElementById("figures").children[n] || null;
      if (made && JSON.stringify(made.plot) === JSON.stringify(plot)) return;
      var isAlike = made && made.plot.title === plot.title && !made.plot.caption === !plot.caption;
      if (isAlike) {
        renew(made, plot);
        return;
      }
      if (made) {
        place = made.figure.nextSibling;
        forget(made);
      }
      add(plot, place);
    });
  }

  isDark.addEventListener("change", function () {
    drawn.forEach(function (place, plot) { draw(plot, place); });
  });

  /* -- paper ------------------------------------------------------------------------------ */

  var whenDrawn = Promise.resolve();

  /* A promise of all pictures of clips: those that were never in view are not there yet. */
  function pictures() {
    var late = Array.from(document.querySelectorAll("#gallery img"));
    late.forEach(function (image) { image.loading = "eager"; });
    var patience = new Promise(function (resolve) { setTimeout(resolve, PICTURES_MS); });
    return Promise.race([patience, Promise.allSettled(late.map(function (image) { return image.decode(); }))]);
  }

  /* Draw all plots as they look on paper, also those that were never in view. By a menu they must be
     there at once, which they are once the library is loaded. */
  document.addEventListener("hv15-paper", function () {
    drawn.forEach(function (place, plot) { draw(plot, place); });
    if (!hv15.paper.isOn()) return;
    if (hv15.gallery) hv15.gallery.finish();
    whenDrawn = load().then(function () {
      var rest = Array.from(waiting.values());
      rest.forEach(function (made) {
        waiting.delete(made.place);
        observer.unobserve(made.place);
      });
      rest.forEach(paint);
      return Promise.all([pictures()].concat(Array.from(underway)));
    });
  });

  document.addEventListener("keydown", function (event) {
    if (event.key.toLowerCase() !== "p" || !(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey) return;
    event.preventDefault();
    hv15.paper.set(true);
    whenDrawn.then(function () { window.print(); }, function () { window.print(); });
  });

  hv15.plots = { update: update };
})();
