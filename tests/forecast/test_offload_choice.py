"""Which profile `auto` takes, and what is refused with which numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from fakes.forecasts import GIB, SETTINGS, config, machine

from hv15_batch.config.settings import Config, DispatchConfig
from hv15_batch.errors import Refused
from hv15_batch.forecast._quality import of_setting
from hv15_batch.forecast.offload import choose_cards, choose_offload
from hv15_batch.machine.machine import Machine, usable_cpus
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.linears import transformer_bytes
from hv15_batch.model.variant import Dtype, Linear, OffloadKind, Weights


def pretrained() -> Config:
    made = config()
    made.model.weights = Weights.pretrained
    return made


@pytest.mark.parametrize(
    ("card", "ram", "limit", "kind", "streams"),
    [
        (139, 120, None, "resident", False),
        (24, 64, None, "resident", False),
        (16, 64, None, "stream", True),
        (8, 32, None, "stream", True),
        (8, 16, None, "stream_disk", True),
        (139, 120, 12, "stream", True),
    ],
)
def test_auto_takes_the_fastest_profile_that_fits(
    card: float, ram: float, limit: float | None, kind: str, streams: bool
) -> None:
    made = pretrained()
    made.runtime.vram_limit_gib = limit

    choice = choose_offload(made, [SETTINGS], machine(card, ram))

    assert choice.kind.name == kind
    assert choice.streams_text_encoder is streams
    assert choice.reason.startswith(f"offload {kind}: ")
    assert choice.peaks is not None
    assert choice.peaks.device_bytes <= (limit or card) * GIB


def test_the_largest_clip_decides() -> None:
    large = replace(SETTINGS, height=720, width=1280)

    assert choose_offload(config(), [SETTINGS], machine(24)).kind is OffloadKind.resident
    assert choose_offload(config(), [SETTINGS, large], machine(24)).kind is OffloadKind.stream


@pytest.mark.parametrize("kind", ["resident", "model", "stream"])
def test_loras_take_their_size_of_the_card_in_every_profile(kind: str) -> None:
    loras = 2 * GIB

    plain = choose_offload(config(kind), [SETTINGS], machine(139)).peaks
    peaks = choose_offload(config(kind), [SETTINGS], machine(139), loras).peaks

    assert plain is not None
    assert peaks is not None
    assert peaks.denoise_bytes - plain.denoise_bytes == loras
    assert peaks.encode_bytes == plain.encode_bytes
    assert peaks.decode_bytes >= plain.decode_bytes
    # Where it no longer fits, the next profile is taken.
    assert choose_offload(config(), [SETTINGS], machine(24), 4 * GIB).kind is OffloadKind.stream


@pytest.mark.parametrize("linear", [Linear.fp8, Linear.int8])
def test_8_bit_weights_need_half_the_room_in_every_profile(linear: Linear) -> None:
    for kind in ("resident", "model", "stream", "stream_disk"):
        plain = choose_offload(config(kind), [SETTINGS], machine(139)).peaks
        choice = choose_offload(in_8_bits(config(kind), linear), [SETTINGS], machine(139))
        peaks = choice.peaks
        assert plain is not None
        assert peaks is not None
        weights = transformer_bytes(Linear.bf16) - transformer_bytes(linear)
        if kind in ("resident", "model"):
            assert plain.denoise_bytes - peaks.denoise_bytes == weights
        if kind == "resident":
            assert plain.decode_bytes - peaks.decode_bytes == weights
        elif kind == "model":
            assert plain.host_bytes - peaks.host_bytes == weights
        else:  # the text encoder, which passes through the card too, may need more
            assert plain.host_bytes > peaks.host_bytes
        assert peaks.encode_bytes == plain.encode_bytes
        assert f"computed in {linear.name}" in choice.reason


def test_auto_takes_a_faster_profile_where_8_bit_weights_fit() -> None:
    plain = choose_offload(config(), [SETTINGS], machine(16))
    small = choose_offload(in_8_bits(config(), Linear.fp8), [SETTINGS], machine(16))

    assert (plain.kind, small.kind) == (OffloadKind.stream, OffloadKind.resident)
    assert "computed in" not in plain.reason


def test_read_weights_in_8_bits_are_held_in_ram_for_stream_disk() -> None:
    """Else the pages of the mapped files count for nothing."""
    made = pretrained()
    made.offload.kind = OffloadKind.stream_disk
    plain = choose_offload(made, [SETTINGS], machine(139)).peaks
    peaks = choose_offload(in_8_bits(made, Linear.fp8), [SETTINGS], machine(139)).peaks

    assert plain is not None
    assert peaks is not None
    assert plain.host_bytes < transformer_bytes(Linear.fp8) < peaks.host_bytes


def in_8_bits(config: Config, linear: Linear) -> Config:
    return replace(config, runtime=replace(config.runtime, linear=linear))


def test_a_profile_that_cannot_fit_is_refused_with_the_one_that_would() -> None:
    with pytest.raises(Refused) as refused:
        choose_offload(config("resident"), [SETTINGS], machine(16))

    assert str(refused.value) == (
        "offload=resident: 480x848x121 needs 22.0 GiB of card and 16.0 are free; use "
        "offload=stream or offload=auto."
    )


def test_where_nothing_fits_every_profile_is_named_with_its_numbers() -> None:
    with pytest.raises(Refused) as refused:
        choose_offload(config(), [SETTINGS], machine(4))

    message = str(refused.value)
    assert message.startswith("offload=auto: 480x848x121 fits no profile here: resident ")
    assert all(f"{kind} " in message for kind in ("resident", "stream", "model", "stream_disk"))
    assert message.count(" GiB of card and 4.0 are free") == 4
    assert message.endswith("Free memory: the weights alone do not fit, whatever the clips.")
    would_do = re.search(r"offload=(\w+) needs only (\d\.\d) GiB of card", message)
    assert would_do is not None
    limit = float(would_do[2])
    assert choose_offload(config(limit=limit), [SETTINGS], machine(24)).kind.name == would_do[1]
    with pytest.raises(Refused):
        choose_offload(config(limit=limit - 0.1), [SETTINGS], machine(24))


def test_where_nothing_fits_8_bit_weights_that_would_are_named_with_their_quality() -> None:
    poor = machine(18, 5)  # too little RAM for every other profile
    with pytest.raises(Refused) as refused:
        choose_offload(config(), [SETTINGS], poor)

    for linear in (Linear.int8, Linear.fp8):
        quality = of_setting(linear.name)
        words = f"runtime.linear={linear.name} fits with offload=resident (quality: {quality}). "
        assert words in str(refused.value)
        found = choose_offload(in_8_bits(config(), linear), [SETTINGS], poor)
        assert found.kind is OffloadKind.resident
    old = replace(poor, gpus=(replace(poor.gpus[0], name="NVIDIA GeForce RTX 3090"),))
    with pytest.raises(Refused) as refused:
        choose_offload(config(), [SETTINGS], old)
    assert "runtime.linear=int8 fits" in str(refused.value)
    assert "runtime.linear=fp8" not in str(refused.value)


def test_where_only_large_clips_do_not_fit_smaller_ones_are_advised() -> None:
    huge = replace(SETTINGS, height=2160, width=3840)

    with pytest.raises(Refused, match=r"Render smaller or shorter clips, or free memory\.$"):
        choose_offload(config(), [huge], machine(24))


def test_too_little_of_both_memories_is_said_at_once_with_what_would_do() -> None:
    with pytest.raises(Refused) as refused:
        choose_offload(pretrained(), [SETTINGS], machine(4, 5))

    message = str(refused.value)
    assert re.search(r"stream needs \d+\.\d GiB of card and 4\.0 are free, and needs \d+\.\d GiB "
                     r"of RAM and 5\.0 are available;", message)  # fmt: skip
    would_do = re.search(
        r"offload=(\w+) needs only (\S+) GiB of RAM and (\S+) GiB of card\.", message
    )
    assert would_do is not None
    ram, card = float(would_do[2]), float(would_do[3])
    assert choose_offload(pretrained(), [SETTINGS], machine(card, ram)).kind.name == would_do[1]
    for less in (machine(card, ram - 0.1), machine(card - 0.1, ram)):
        with pytest.raises(Refused):
            choose_offload(pretrained(), [SETTINGS], less)


def test_short_clips_that_would_wait_for_their_weights_are_not_streamed() -> None:
    short = replace(SETTINGS, num_frames=5, num_inference_steps=50)

    choice = choose_offload(config(), [short], machine(18.5))

    assert choice.kind is OffloadKind.model
    assert "; stream would take longer for clips this short; " in choice.reason
    assert choice.reason.startswith("offload model: resident needs ")
    few = replace(short, num_inference_steps=2)  # too few to pay for moving models
    assert choose_offload(config(), [few], machine(18.5)).kind is OffloadKind.stream


def test_too_little_host_memory_for_stream_is_seen() -> None:
    """22.9 to 23.9 GiB were found; under a cap of 26 GiB it ran."""
    assert choose_offload(pretrained(), [SETTINGS], machine(8, 22)).kind is OffloadKind.stream_disk
    assert choose_offload(config(), [SETTINGS], machine(12, 25.5)).kind is OffloadKind.stream


def test_every_size_must_fit_not_only_the_longest_clip() -> None:
    wide = replace(SETTINGS, height=2160, width=3840, num_frames=5)

    choice = choose_offload(config("stream", limit=12), [SETTINGS], machine(24))
    assert choice.kind is OffloadKind.stream
    with pytest.raises(Refused, match=r"^offload=stream: 2160x3840x5 fits no profile"):
        choose_offload(config("stream", limit=8), [SETTINGS, wide], machine(24))


def test_the_mask_decides_what_fits() -> None:
    masked = config()
    masked.runtime.mask_free = False

    assert choose_offload(masked, [SETTINGS], machine(24)).kind is OffloadKind.stream
    exact = config()
    exact.runtime.dtype = Dtype.float32
    assert choose_offload(exact, [SETTINGS], machine(24)).kind is not OffloadKind.resident


def test_the_line_has_the_peak_of_each_stage_and_this_machines_memory() -> None:
    choice = choose_offload(config(), [SETTINGS], machine(24, 64))

    assert choice.reason == (
        "offload resident: everything fits; predicted peak 23.6 GiB of card (encode 13.8, denoise "
        "20.2, decode 22.2, CUDA's own 1.4) and 3.5 GiB of RAM (64.0 are available on this machine)"
    )


def test_on_the_cpu_nothing_is_chosen() -> None:
    choice = choose_offload(config(), [SETTINGS], replace(machine(8), gpus=()))

    assert choice.kind is OffloadKind.resident
    assert choice.budget_bytes is None


# -- several cards ------------------------------------------------------------------------------


def cards(*free_gib: float, names: str = "") -> Machine:
    """A machine with such cards; each letter of `names` is another kind."""
    found = tuple(
        Gpu(n, f"NVIDIA {name}", f"GPU-{n}", 24 * GIB, int(free * GIB), "580", 450.0)
        for n, (free, name) in enumerate(zip(free_gib, names or "x" * 9, strict=False))
    )
    return replace(machine(24), gpus=found)


def chosen(typed: int | str, here: Machine, clips: int = 100, **changes: Any) -> list[int | None]:
    made = replace(pretrained(), dispatch=DispatchConfig(workers=typed), **changes)
    found = choose_cards(made, here, [made.model], clips)
    return [gpu.index if gpu else None for gpu in found]


def test_auto_takes_cards_that_are_like_the_first_and_as_free() -> None:
    assert chosen("auto", cards(23, 23, 23)) == [0, 1, 2]
    assert chosen("auto", cards(23, 8, 22)) == [0, 2], "another program is on card 1"
    assert chosen("auto", cards(23, 23, 23, names="xyx")) == [0, 2]
    assert chosen("all", cards(23, 8, 23, names="xyx")) == [0, 1, 2]
    assert chosen(2, cards(23, 23, 23)) == [0, 1]
    assert chosen("all", cards(23, 23, 23), clips=2) == [0, 1], "no more workers than clips"


def test_more_cards_than_there_are_is_refused_with_what_there_is() -> None:
    with pytest.raises(Refused, match=r"dispatch.workers=3: this machine shows 2 cards"):
        chosen(3, cards(23, 23))
    assert chosen(3, cards(23, 23), dry_run=True) == [0, 1, 0], "the dry run plans for more"


def test_on_the_cpu_workers_are_processes() -> None:
    nothing = replace(machine(24), gpus=())
    assert chosen("auto", nothing) == [None]
    assert chosen(3, nothing) == [None] * 3
    assert len(chosen("all", nothing)) == usable_cpus()


def test_more_processes_than_the_ram_holds_are_refused_with_how_many_it_does() -> None:
    nothing = replace(machine(24), gpus=(), ram_total_bytes=200 * GIB)
    assert len(chosen(800, nothing, clips=2000)) == 800
    with pytest.raises(Refused, match=r"workers=1000: the RAM .*200.0 GiB.* 800 processes at most"):
        chosen(1000, nothing, clips=2000)
    assert len(chosen(1000, nothing, clips=2)) == 2, "no more than clips"
    assert len(chosen(1000, nothing, clips=2000, dry_run=True)) == 1000


@pytest.mark.parametrize("typed", ["two", "0", "-1", "true", "5000", "1.5"])
def test_what_is_no_number_of_workers_is_refused(typed: str) -> None:
    with pytest.raises(Refused, match=r"dispatch.workers=.*: must be auto, all or 1 to 4096"):
        chosen(typed, cards(23))


def test_workers_share_the_ram_of_a_machine() -> None:
    made = pretrained()
    alone = choose_offload(made, [SETTINGS], machine(12, 40))
    of_two = choose_offload(made, [SETTINGS], machine(12, 40), num_workers=2)

    assert alone.kind is OffloadKind.stream
    assert of_two.kind is OffloadKind.stream_disk
    assert "20.0 are available for each of 2 workers" in of_two.reason
