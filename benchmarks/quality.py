"""What each setting costs in quality: one table of obedience and PSNR of demo clips.

    python benchmarks/quality.py OUT --cpu                   # 8 clips, about 14 min of CPU time
    python benchmarks/quality.py OUT --gpu --minutes 8       # 160 clips of each setting, on a card
    python benchmarks/quality.py OUT --curves                # guidance and steps, for the plot
    python benchmarks/quality.py OUT --gpu --only 'kernel*' --clips 16

The program itself renders each setting to a folder of OUT, with lossless frames. The frames of two
settings with the same prompts and seeds are compared, and read by the rules of obedience.py. Type
the same command again to resume. A further setting is one line below.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

from obedience import PROMPTS
from quality_clips import NOT_YET, Looks, Row, Setting, begin_reader, render, write_spread_manifest

from hv15_batch.model.attention import KERNELS

HEADS = (
    *("setting", "in effect", "clips"),
    *("colour", "place", "direction", "kind of motion", "shape", "words"),
    *("PSNR, median", "worst", "same frames"),
)

PLAIN, PLAIN_I2V = "plain float32", "plain float32, i2v"
_PLAIN = ("runtime.mask_free=false", "runtime.attention_backend=native", "offload=resident")
_BF16, _RESIDENT = "runtime.dtype=bfloat16", "offload=resident"
_SHORT = "override.num_inference_steps=8"

CPU = (
    Setting("float32", (_SHORT,), clips=8),
    Setting("bfloat16", (_SHORT, _BF16), "float32", clips=8),
    Setting("fp8 linears", (_SHORT, "runtime.linear=fp8"), "float32", clips=8),
    Setting("int8 linears", (_SHORT, "runtime.linear=int8"), "float32", clips=8),
    Setting("masked", (_SHORT, "runtime.mask_free=false"), "float32", clips=1),
    Setting("compiled", (_SHORT, "runtime.compile=true"), "float32", clips=1),
)
"""On the CPU plain float32 is mask-free: with the mask of plain diffusers a clip takes four times
as long, so that one shows that nothing else changes."""

GPU = (
    Setting(PLAIN, _PLAIN),
    Setting("float32", (_RESIDENT,), PLAIN),
    Setting("float32, compiled", (_RESIDENT, "runtime.compile=true"), PLAIN),
    Setting("float32, static cache", (_RESIDENT, "sampling.cache=static"), PLAIN),
    Setting("bfloat16", (_RESIDENT, _BF16), PLAIN),
    Setting("bfloat16, compiled", (_RESIDENT, _BF16, "runtime.compile=true"), PLAIN),
    Setting("bfloat16, static cache", (_RESIDENT, _BF16, "sampling.cache=static"), PLAIN),
    Setting("bfloat16, masked", (*_PLAIN, _BF16), PLAIN),
    Setting("bfloat16, fp8 linears", (_RESIDENT, _BF16, "runtime.linear=fp8"), PLAIN),
    Setting("bfloat16, int8 linears", (_RESIDENT, _BF16, "runtime.linear=int8"), PLAIN),
    Setting("float16", (_RESIDENT, "runtime.dtype=float16"), PLAIN),
    Setting("offload model", ("offload=model", _BF16), PLAIN),
    Setting("offload stream", ("offload=stream", _BF16), PLAIN),
    Setting("offload stream_disk", ("offload=stream_disk", _BF16), PLAIN),
    *(
        Setting(f"kernel {name}", (_RESIDENT, _BF16, f"runtime.attention_backend={name}"), PLAIN)
        for name in KERNELS
    ),
    Setting(PLAIN_I2V, _PLAIN, clips=40, model="demo_i2v"),
    Setting("float32, i2v", (_RESIDENT,), PLAIN_I2V, 40, "demo_i2v"),
    Setting("bfloat16, i2v", (_RESIDENT, _BF16), PLAIN_I2V, 40, "demo_i2v"),
)
GUIDANCES, STEPS = (1, 3, 6), (4, 8, 12, 20, 30)


def curve(guidance: int, steps: int) -> str:
    """Return the name of a point of the plot."""
    return f"guidance {guidance}, {steps} steps"


CURVES = tuple(
    Setting(
        curve(guidance, steps),
        (f"override.guidance_scale={guidance}", f"override.num_inference_steps={steps}"),
        curve(guidance, STEPS[-1]) if steps != STEPS[-1] else "",
        PROMPTS,
    )
    for guidance in GUIDANCES
    for steps in reversed(STEPS)
)


# -- the table --------------------------------------------------------------------------------


def decibels(value: float) -> str:
    """Return a PSNR as it is printed."""
    return "same" if math.isinf(value) else f"{value:.1f}"


def same_frames(row: Row, rows: Iterable[Row]) -> str:
    """Return with which earlier row most clips have the very same frames."""
    best, name = 0, ""
    for other in rows:
        if other is row:
            break
        shared = [key for key in row.clips if key in other.clips]
        same = sum(row.clips[key]["frames"] == other.clips[key]["frames"] for key in shared)
        if same > best:
            best, name = same, other.setting.name
    return f"{best} of {len(row.clips)} as {name}" if best else ""


def markdown(rows: Sequence[Row]) -> str:
    """Return the table, and below it what could not be run."""
    lines = [
        f"| {' | '.join(HEADS)} |",
        "|---" * len(HEADS) + "|",
    ]
    for row in rows:
        if not row.clips:
            continue
        counts = [f"{right}/{asked}" if asked else "" for right, asked in row.counts().values()]
        psnr = row.psnr_db()
        quality = [decibels(statistics.median(psnr)), decibels(min(psnr))] if psnr else ["", ""]
        effect = row.in_effect
        what = [
            effect["dtype"],
            effect.get("linear"),
            effect["attention_backend"],
            effect["offload"],
        ]
        cells = [row.setting.name, ", ".join(filter(None, what)), str(len(row.clips)), *counts]
        lines.append(f"| {' | '.join([*cells, *quality, same_frames(row, rows)])} |")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:  # what to install is in the JSON
            why = row.reason.partition(";")[0]
            words = [f"{word}: " for word in row.setting.words if why.startswith(f"{word}: ")]
            reasons.setdefault(why.removeprefix("".join(words)), []).append(row.setting.name)
    if reasons:
        lines += ["", "Not run, or not to the end:", ""]
    lines += [f"- {', '.join(names)}: {why}." for why, names in reasons.items()]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as they are stored: counts, decibels (null: the same frames), reasons."""
    results = []
    for row in rows:
        psnr = row.psnr_db()
        stored: dict[str, Any] = {
            "name": row.setting.name,
            "words": list(row.setting.words),
            "model": row.setting.model,
            "beside": row.setting.beside,
            "clips": len(row.clips),
            "right": {name: list(count) for name, count in row.counts().items()},
            "compared": len(psnr),
            "identical": sum(map(math.isinf, psnr)),
            "same_frames": same_frames(row, rows),
            "reason": row.reason,
            "in_effect": row.in_effect,
        }
        for name, function in (("psnr_median_db", statistics.median), ("psnr_worst_db", min)):
            value = function(psnr) if psnr else math.inf
            stored[name] = None if math.isinf(value) else value
        if any(map(math.isfinite, psnr)):
            stored["worst_clip"] = list(max(row.clips, key=lambda k: row.clips[k]["error"] or 0.0))
        results.append(stored)
    return results


def make_rows(
    settings: Sequence[Setting],
    out: Path,
    *,
    results: Path | None = None,
    only: Sequence[str] = ("*",),
    clips: int = 2 * PROMPTS,
    jobs: int = 1,
    readers: int = 1,
    read_on: str = "cpu",
    end: float = math.inf,
) -> list[Row]:
    """Render settings and look at their clips; the tables are written after each.

    Args:
        settings: rows of the table, in its order.
        out: folder for everything that is rendered.
        results: folder for the table; None means `out`.
        only: patterns of the names that are rendered; others show what is there.
        clips: at most so many of a setting.
        jobs: settings that are rendered at once.
        readers: processes that look at clips.
        read_on: `cpu` or `cuda`, where they do so.
        end: of `time.monotonic()`; then nothing more is rendered.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for model in {setting.model for setting in settings}:
        write_spread_manifest(out, model)
    usable = sorted(os.sched_getaffinity(0))
    free: Queue[set[int]] = Queue()
    for job in range(jobs):
        free.put(set(usable[job::jobs]) or set(usable))
    folders = {setting.name: setting.folder for setting in settings}
    rows: dict[str, Row] = {}
    pool = ProcessPoolExecutor(readers, get_context("spawn"), begin_reader, (read_on,))
    with ThreadPoolExecutor(jobs) as renders, pool as processes:
        looks = Looks(out, processes)
        numbers = {setting.name: min(setting.clips, clips) for setting in settings}
        futures = {
            renders.submit(render, setting, out, numbers[setting.name], free, end): setting
            for setting in settings
            if any(fnmatch(setting.name, pattern) for pattern in only)
        }
        begun = {setting.name for setting in futures.values()}
        waiting = [setting for setting in settings if setting.name not in begun]
        rendered = {setting.name for setting in waiting}
        for future in chain([None], as_completed(futures)):
            if future is not None:
                future.result()
                rendered.add(futures[future].name)
                waiting.append(futures[future])
            ready = [s for s in waiting if s.beside in rendered or not s.beside]
            for setting in ready:
                waiting.remove(setting)
                other = folders.get(setting.beside, "")
                row = looks.look(setting, numbers[setting.name], other)
                if row.clips or setting.name in begun or row.reason != NOT_YET:
                    rows[setting.name] = row
                    table = [rows[s.name] for s in settings if s.name in rows]
                    write_results(table, results or out)
                    print(markdown([row]).splitlines()[-1], flush=True)
    return [rows[setting.name] for setting in settings if setting.name in rows]


def write_results(rows: Sequence[Row], folder: Path) -> None:
    """Write the tables: `quality.md` and `.json`, and of guidance and steps `curves.*`."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = [row for row in rows if row.setting in CURVES]
    for name, part in (("quality", [r for r in rows if r not in curves]), ("curves", curves)):
        if part:
            stored = json.dumps(summary(part), indent=1, allow_nan=False)
            (folder / f"{name}.json").write_text(stored + "\n", encoding="utf-8")
            (folder / f"{name}.md").write_text(markdown(part) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the words say."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path, help="folder for everything that is rendered")
    arguments.add_argument("--cpu", action="store_true", help="the settings of a CPU")
    arguments.add_argument("--gpu", action="store_true", help="the settings of a card")
    arguments.add_argument("--curves", action="store_true", help="guidance and steps")
    arguments.add_argument("--only", action="append", help="names to render, e.g. 'kernel*'")
    arguments.add_argument("--clips", type=int, default=2 * PROMPTS, help="at most, of a setting")
    arguments.add_argument("--minutes", type=float, default=math.inf, help="then none is begun")
    arguments.add_argument(
        "--jobs", type=int, help="runs at once; default: as many as the cores carry"
    )
    arguments.add_argument("--readers", type=int, default=2, help="processes that read clips")
    arguments.add_argument("--read-on", default="cpu", choices=("cpu", "cuda"))
    arguments.add_argument("--results", type=Path, help="folder for the table, if not OUT")
    chosen = arguments.parse_args()
    settings = [
        *(CPU if chosen.cpu else ()),
        *(GPU if chosen.gpu else ()),
        *(CURVES if chosen.curves else ()),
    ]
    if not settings or (chosen.cpu and chosen.gpu):
        arguments.error("name one of --cpu and --gpu, or --curves")
    cores = len(os.sched_getaffinity(0))
    if chosen.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also on a machine with a card
    rows = make_rows(
        settings,
        chosen.out,
        results=chosen.results,
        only=chosen.only or ["*"],
        clips=chosen.clips,
        jobs=chosen.jobs or max(1, cores if chosen.cpu else cores * 3 // 8),
        readers=chosen.readers,
        read_on=chosen.read_on,
        end=time.monotonic() + 60 * chosen.minutes,
    )
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
