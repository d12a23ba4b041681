"""Which benchmark repetitions may stand for a pair: those made just as its two clips were.

A repetition keeps no file, so what is seen of quality is that of the clips; the speed beside it has
to be that of the same settings, carried out in the same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hv15_batch.compare.run_settings import NOT_KNOWN, OF_RUN

Record = dict[str, Any]
Repetitions = Mapping[tuple[str, int], Mapping[int, list[Record]]]
"""By row id and seed, and then by repetition: the attempts at it, that which counts most last."""

ASKED = (
    *("prompt", "image", "negative_prompt", "model", "revision", "weights", "height", "width"),
    *("num_frames", "num_inference_steps", "guidance_scale", "flow_shift", "fps"),
    "attention_backend_requested",
)
"""What `settings_sha256` is over, as far as the log has it: to say what made it another one."""
IN_EFFECT = (
    *("dtype", "attention_backend", "mask_free", "compiled", "offload"),
    *("vae_tile_size", "decode_device", "gpu_name", "gpu_total_bytes"),
    *("driver_version", "torch_version", "diffusers_version"),
)


@dataclass(frozen=True)
class LeftOut:
    """A repetition that both runs have, but made otherwise than the pair's clip."""

    row_id: str
    seed: int
    a: tuple[str, ...]
    """Settings in which that of A differs from A's clip; empty where B's is at fault."""
    b: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Name the settings, without their values: those may be private."""
        sides = [f"{', '.join(names)} of {side}" for side, names in (("A", self.a), ("B", self.b))
                 if names]  # fmt: skip
        return " and ".join(sides)


def by_repetition(records: Iterable[Record]) -> Repetitions:
    """Return the measured repetitions of a log; 0 is a benchmark's warm-up."""
    found: dict[tuple[str, int], dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["repeat"]:
            found[record["row_id"], record["seed"]][record["repeat"]].append(record)
    return found


def choose_repetitions(
    clips: Iterable[tuple[Record, Record]], a: Repetitions, b: Repetitions
) -> tuple[list[tuple[Record, Record]], list[LeftOut]]:
    """Return the repetitions that both runs have of each pair of clips, and those left out.

    Of several attempts at one repetition, the last that was made as the clip counts.
    """
    chosen, left_out = [], []
    for clip_a, clip_b in clips:
        key = (clip_a["row_id"], clip_a["seed"])
        of_a, of_b = a.get(key, {}), b.get(key, {})
        for repeat in sorted(of_a.keys() & of_b.keys()):
            one, faults_a = _made_as(clip_a, of_a[repeat])
            other, faults_b = _made_as(clip_b, of_b[repeat])
            if faults_a or faults_b:
                left_out.append(LeftOut(*key, faults_a, faults_b))
            else:
                chosen.append((one, other))
    return chosen, left_out


def _made_as(clip: Record, attempts: list[Record]) -> tuple[Record, tuple[str, ...]]:
    """Return the last attempt that was made as a clip, or the last one and how it differs."""
    for attempt in reversed(attempts):
        if not _differences(clip, attempt):
            return attempt, ()
    return attempts[-1], _differences(clip, attempts[-1])


def _differences(clip: Record, attempt: Record) -> tuple[str, ...]:
    """Return in what an attempt differs from a clip: settings asked, in effect, and of its run."""
    is_asked_alike = attempt["settings_sha256"] == clip["settings_sha256"]
    names = [name for name in (*ASKED, *IN_EFFECT) if attempt[name] != clip[name]]
    if is_asked_alike and "image" in names:
        names.remove("image")  # the hash has its content: it goes by another path
    if attempt["run_id"] != clip["run_id"]:  # one run has one configuration, known or not
        names += [n for n in OF_RUN if attempt[n] != clip[n] or attempt[n] == NOT_KNOWN]
    if not is_asked_alike and not names:
        names = ["settings_sha256"]
    return tuple(names)
