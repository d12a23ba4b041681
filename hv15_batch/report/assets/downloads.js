/* A plot as a file: its picture as SVG or PNG, its values as CSV. All is made in the browser. */
(function () {
  "use strict";
  var hv15 = (window.hv15 = window.hv15 || {});
  var KINDS = ["svg", "png", "csv"];

  function nameOf(plot, kind) {
    return plot.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") + "." + kind;
  }

  function cell(value) {
    var text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  /* The values of a plot, a line for each; report --figures writes the same. */
  function csv(plot) {
    var hasClips = plot.traces.some(function (trace) { return trace.text; });
    var lines = [["series", plot.over || "x", plot.unit || (plot.isByName ? "name" : "y")].concat(hasClips ? ["clip"] : [])];
    plot.traces.forEach(function (trace) {
      trace.x.forEach(function (x, n) {
        lines.push([trace.name, x, trace.y[n]].concat(hasClips ? [trace.text && trace.text[n]] : []));
      });
    });
    return lines.map(function (line) { return line.map(cell).join(","); }).join("\r\n") + "\r\n";
  }

  /* Plotly gives a picture as an address that holds it; pages may not fetch such an address. */
  function blobOf(address) {
    var comma = address.indexOf(",");
    var head = address.slice(5, comma), body = address.slice(comma + 1);
    if (!/;base64$/.test(head)) return new Blob([decodeURIComponent(body)], { type: head });
    var bytes = Uint8Array.from(atob(body), function (character) { return character.charCodeAt(0); });
    return new Blob([bytes], { type: head.replace(/;base64$/, "") });
  }

  /* Three buttons; `now` returns the plot, `draw` a promise of its picture in a format. */
  function buttons(now, draw) {
    var bar = document.createElement("p");
    bar.className = "downloads";
    KINDS.forEach(function (kind) {
      var button = document.createElement("button");
      button.type = "button";
      button.className = "quiet-button";
      button.textContent = kind.toUpperCase();
      button.setAttribute("aria-label", "Save " + now().title + " as " + kind.toUpperCase());
      button.addEventListener("click", function () {
        var plot = now(), name = nameOf(plot, kind);
        if (kind === "csv") {
          hv15.save(name, csv(plot));
          return;
        }
        draw(kind).then(function (address) { hv15.save(name, blobOf(address)); }, function (error) {
          hv15.say(name + " could not be made: " + error.message);
        });
      });
      bar.appendChild(button);
    });
    return bar;
  }

  hv15.downloads = { buttons: buttons };
})();
