r"""Libraries that could draw the plots of the pages: bytes, and seconds in a browser.

    mkdir LIB && cd LIB
    npm install --ignore-scripts plotly.js-dist-min plotly.js-basic-dist-min \
        plotly.js-cartesian-dist-min uplot chart.js echarts vega vega-lite vega-embed \
        @observablehq/plot d3
    python benchmarks/plot_libraries.py LIB/node_modules

Each library is loaded from the disk by a page of its own, and draws the stages of 200 clips as
stacked bars. "load" is from the request to the end of its script, "first plot" from there until the
plot is drawn. Needs the development packages (playwright) and Debian's Chromium, as the tests do.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
from pathlib import Path

from page import FLAGS
from playwright.sync_api import sync_playwright

PLOTLY = """Plotly.newPlot(place, stages.map(s => ({type: 'bar', name: s, x: clips, y: values[s]})),
    {barmode: 'stack', width: 600, height: 280})"""
CHART = """new Chart(place.appendChild(document.createElement('canvas')), {type: 'bar',
    data: {labels: clips, datasets: stages.map(s => ({label: s, data: values[s]}))},
    options: {animation: false, scales: {x: {stacked: true}, y: {stacked: true}}}})"""
ECHARTS = """echarts.init(place, null, {renderer: 'svg', width: 600, height: 280}).setOption({
    animation: false, tooltip: {trigger: 'axis'}, legend: {},
    xAxis: {type: 'category', data: clips},
    yAxis: {}, series: stages.map(s => ({type: 'bar', stack: 'all', name: s, data: values[s]}))})"""
UPLOT = """new uPlot({width: 600, height: 280, scales: {x: {time: false}},
    series: [{}, ...stages.map(s => ({label: s, stroke: 'blue', fill: 'lightblue',
        paths: uPlot.paths.bars()}))]},
    [clips, ...stages.map((s, n) => clips.map((c, k) =>
        stages.slice(n).reduce((sum, t) => sum + values[t][k], 0)))], place)"""
LITE = """await vegaEmbed(place, {width: 600, height: 280, mark: {type: 'bar', tooltip: true},
    data: {values: stages.flatMap(s => clips.map((c, k) => ({c, s, v: values[s][k]})))},
    encoding: {x: {field: 'c', type: 'ordinal'}, y: {field: 'v', type: 'quantitative'},
        color: {field: 's'}}}, {renderer: 'svg'})"""
OBSERVABLE = """place.append(Plot.plot({width: 600, height: 280, marks: [Plot.barY(
    stages.flatMap(s => clips.map((c, k) => ({c, s, v: values[s][k]}))),
    {x: 'c', y: 'v', fill: 's', tip: true})]}))"""
LIBRARIES = {
    "plotly.js, full": (["plotly.js-dist-min/plotly.min.js"], PLOTLY),
    "plotly.js, cartesian": (["plotly.js-cartesian-dist-min/plotly-cartesian.min.js"], PLOTLY),
    "plotly.js, basic": (["plotly.js-basic-dist-min/plotly-basic.min.js"], PLOTLY),
    "ECharts": (["echarts/dist/echarts.min.js"], ECHARTS),
    "Vega-Lite": (
        ["vega/build/vega.min.js", "vega-lite/build/vega-lite.min.js",
         "vega-embed/build/vega-embed.min.js"],
        LITE,
    ),
    "Observable Plot": (
        ["d3/dist/d3.min.js", "@observablehq/plot/dist/plot.umd.min.js"], OBSERVABLE,
    ),
    "Chart.js": (["chart.js/dist/chart.umd.min.js"], CHART),
    "uPlot": (["uplot/dist/uPlot.iife.min.js"], UPLOT),
}  # fmt: skip
MEASURE = """async files => {
    const place = document.body.appendChild(document.createElement('div'));
    const stages = ['encode', 'denoise', 'decode', 'write'];
    const clips = Array.from({length: 200}, (_, n) => n + 1);
    const values = {};
    stages.forEach((s, n) => { values[s] = clips.map(c => 10 * (n + 1) + c % 7); });
    const start = performance.now();
    for (const file of files) await new Promise((done, failed) => {
        const script = document.createElement('script');
        [script.onload, script.onerror] = [done, failed];
        script.src = file;
        document.head.append(script);
    });
    const loaded = performance.now();
    await (async () => { DRAW; })();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    return [loaded - start, performance.now() - loaded];
}"""


def main() -> None:
    """Measure each library and print a line about it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", type=Path, help="the folder node_modules")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        page_file = Path(name) / "page.html"
        page_file.write_text("<!DOCTYPE html><body></body>", encoding="utf-8")
        for library, (names, draw) in LIBRARIES.items():
            files = [(chosen.modules / each).resolve() for each in names]
            content = b"".join(file.read_bytes() for file in files)
            taken = []
            for repeat in range(chosen.repeats):
                context = driver.chromium.launch_persistent_context(
                    Path(name) / f"{library} {repeat}",
                    executable_path="/usr/bin/chromium",
                    args=FLAGS,
                )
                page = context.new_page()
                page.goto(page_file.as_uri())
                addresses = [file.as_uri() for file in files]
                taken.append(page.evaluate(MEASURE.replace("DRAW", draw), addresses))
                context.close()
            load, first = (statistics.median(column) for column in zip(*taken, strict=True))
            print(
                f"{library}: {len(content):,} bytes, {len(gzip.compress(content)):,} compressed, "
                f"load {load:.0f} ms, first plot {first:.0f} ms, n={chosen.repeats}"
            )


if __name__ == "__main__":
    main()
