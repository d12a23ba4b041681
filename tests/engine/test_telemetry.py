"""What a card did meanwhile: sampled through a made-up NVML, by a made-up clock."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hv15_batch.engine._measure import Stage, StageMeter, make_sampler
from hv15_batch.engine._telemetry import (
    THROTTLE_COLUMNS,
    THROTTLE_REASONS,
    CardSampler,
    Telemetry,
    sampler_of,
)

UUID = "aaaa1111-0000"
EVERYTHING = {
    "energy_joules",
    "power_watts_mean",
    "sm_clock_mhz_mean",
    "sm_clock_mhz_min",
    "temperature_celsius_max",
    "throttle_seconds",
    *THROTTLE_COLUMNS,
    "peak_vram_device_bytes",
}


class FakeNvml:
    """One card whose answers a test sets; what is None is not supported."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 1, 0, 186, 0

    class NVMLError(Exception):
        pass

    def __init__(self, **answers: float | None) -> None:
        self.now = 0.0
        self.uuid = f"GPU-{UUID}"
        self.has_driver = True
        self.instant: float | None = 300_000
        self.average: float | None = 300_000
        self.energy: float | None = 0
        self.clock: float | None = 1500
        self.temperature: float | None = 50
        self.reasons: float | None = 0
        self.old_reasons: float | None = None
        self.supported: float | None = sum(THROTTLE_REASONS.values())
        self.old_supported: float | None = None
        self.used: float | None = 1000
        self.say(**answers)

    def say(self, **answers: float | None) -> None:
        for name, value in answers.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return str(self._known(uuid if uuid == self.uuid else None))

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:
        assert fields == [self.NVML_FI_DEV_POWER_INSTANT]
        value = SimpleNamespace(uiVal=self.instant)
        return [SimpleNamespace(nvmlReturn=3 if self.instant is None else 0, value=value)]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:
        return self._known(self.average)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:
        return self._known(self.energy)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> Any:
        return self._known(self.clock)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> Any:
        return self._known(self.temperature)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> Any:
        return self._known(self.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> Any:
        return self._known(self.old_reasons)

    def nvmlDeviceGetSupportedClocksEventReasons(self, handle: str) -> Any:
        return self._known(self.supported)

    def nvmlDeviceGetSupportedClocksThrottleReasons(self, handle: str) -> Any:
        return self._known(self.old_supported)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=self._known(self.used), total=5000, free=0)

    def _known(self, value: Any) -> Any:
        if value is None:
            raise self.NVMLError("not supported")
        return value


class Watched:
    """A card and its sampler, whose own thread samples once an hour: a test takes each sample."""

    def __init__(self, **answers: float | None) -> None:
        self.nvml = FakeNvml(**answers)
        self.sampler = CardSampler(self.nvml, "card", 3600, lambda: self.nvml.now)
        self.window = Telemetry()

    def begin(self, **answers: float | None) -> None:
        self.nvml.say(**answers)
        self.window = self.sampler.begin()

    def after(self, seconds: float, **answers: float | None) -> None:
        """Let time pass until the card says something new."""
        self.nvml.say(now=self.nvml.now + seconds, **answers)
        self.sampler.take()

    def end(self) -> dict[str, Any]:
        self.sampler.end(self.window)
        return self.window.columns()


def test_the_energy_is_the_difference_of_the_cards_counter() -> None:
    card = Watched()

    card.begin(energy=7_000_000)
    card.after(2, energy=7_000_900)
    card.after(1, energy=7_001_500)

    assert card.end()["energy_joules"] == pytest.approx(1.5)


def test_without_a_counter_the_power_is_integrated_over_unequal_intervals() -> None:
    card = Watched(energy=None)

    card.begin(instant=100_000)
    card.after(1, instant=300_000)
    card.after(3, instant=300_000)

    columns = card.end()
    assert columns["energy_joules"] == pytest.approx(200 * 1 + 300 * 3)
    assert columns["power_watts_mean"] == pytest.approx(1100 / 4)


def test_a_counter_that_was_set_back_is_not_believed() -> None:
    card = Watched()

    card.begin(energy=5_000_000)
    card.after(2, energy=1000)

    assert card.end()["energy_joules"] == pytest.approx(600)


def test_a_counter_that_did_not_tick_in_a_short_attempt_gives_way_to_the_power() -> None:
    card = Watched(energy=7_000_000)

    card.begin()
    card.after(0.05)

    columns = card.end()
    assert columns["power_watts_mean"] == 300
    assert columns["energy_joules"] == pytest.approx(300 * 0.05)


def test_a_counter_that_did_not_tick_is_no_energy_where_the_power_is_not_known() -> None:
    card = Watched(energy=7_000_000, instant=None, average=None)

    card.begin()
    card.after(0.05)

    assert card.end()["energy_joules"] is None


def test_a_card_without_the_power_of_the_moment_gives_its_mean() -> None:
    card = Watched(instant=None, average=250_000)

    card.begin()
    card.after(1)

    assert card.end()["power_watts_mean"] == 250


def test_clocks_are_weighted_by_time_and_are_not_those_of_a_resting_card() -> None:
    card = Watched()

    card.begin(clock=345, reasons=0x1)
    card.after(0.5, clock=1800, reasons=0)
    card.after(8, clock=1600)
    card.after(1.5, clock=1600)

    columns = card.end()
    mean = (1800 * 0.25 + 1700 * 8 + 1600 * 1.5) / 9.75
    assert columns["sm_clock_mhz_mean"] == pytest.approx(mean)
    assert columns["sm_clock_mhz_min"] == 1600


def test_the_mean_clock_is_never_below_the_lowest() -> None:
    card = Watched()

    card.begin(clock=200, reasons=0x1)
    card.after(1)
    card.after(1, clock=2000, reasons=0)

    columns = card.end()
    assert (columns["sm_clock_mhz_mean"], columns["sm_clock_mhz_min"]) == (2000, 2000)


def test_a_card_that_was_always_idle_has_no_clock() -> None:
    card = Watched()

    card.begin(clock=200, reasons=0x1)
    card.after(1)

    columns = card.end()
    assert (columns["sm_clock_mhz_mean"], columns["sm_clock_mhz_min"]) == (None, None)


@pytest.mark.parametrize(("name", "bit"), THROTTLE_REASONS.items(), ids=THROTTLE_REASONS)
def test_each_throttle_reason_counts_for_as_long_as_it_is_set(name: str, bit: int) -> None:
    card = Watched()

    card.begin(reasons=0)
    card.after(1, reasons=bit | 0x2)
    card.after(4)
    card.after(1, reasons=0)

    columns = card.end()
    assert columns["throttle_seconds"] == pytest.approx(5)
    seconds = {column: 5.0 if name in names else 0.0 for column, names in THROTTLE_COLUMNS.items()}
    assert {column: columns[column] for column in THROTTLE_COLUMNS} == pytest.approx(seconds)
    assert sum(seconds.values()) == 5


def test_overlapping_reasons_count_in_each_column_and_once_in_all() -> None:
    card = Watched()

    card.begin(reasons=0x8 | 0x40)
    card.after(3, reasons=0x8 | 0x40)
    card.after(0, reasons=0x4)
    card.after(2)
    card.window.merge(Telemetry())

    columns = card.end()
    assert columns["throttle_seconds"] == 5
    assert [columns[column] for column in THROTTLE_COLUMNS] == [2, 3, 3, 0]


@pytest.mark.parametrize("old", [False, True])
def test_the_time_of_reasons_that_a_card_does_not_know_is_null(old: bool) -> None:
    known = {"supported": None, "old_supported": 0x4 | 0x8} if old else {"supported": 0x4 | 0x8}
    card = Watched(**known)

    card.begin(reasons=0x4)
    card.after(2)

    columns = card.end()
    assert columns["throttle_seconds"] == 2
    assert [columns[column] for column in THROTTLE_COLUMNS] == [2, None, 0, None]


def test_a_card_that_does_not_say_which_reasons_it_knows_is_taken_to_know_all() -> None:
    card = Watched(supported=None)

    card.begin(reasons=0x20)
    card.after(2)

    columns = card.end()
    assert [columns[column] for column in THROTTLE_COLUMNS] == [0, 2, 0, 0]


@pytest.mark.parametrize("reasons", [0x0, 0x1, 0x2, 0x3])
def test_rest_and_a_clock_that_was_asked_for_are_no_throttling(reasons: int) -> None:
    card = Watched()

    card.begin(reasons=reasons)
    card.after(4)

    assert card.end()["throttle_seconds"] == 0


def test_an_older_driver_is_asked_for_throttle_reasons_by_their_old_name() -> None:
    card = Watched(reasons=None, old_reasons=0x4)

    card.begin()
    card.after(2)

    assert card.end()["throttle_seconds"] == 2


def test_the_peaks_of_memory_and_temperature_are_those_of_any_sample() -> None:
    card = Watched()

    card.begin(used=10, temperature=40)
    card.after(1, used=90, temperature=71)
    card.after(1, used=20, temperature=60)

    columns = card.end()
    assert columns["peak_vram_device_bytes"] == 90
    assert columns["temperature_celsius_max"] == 71


@pytest.mark.parametrize(
    ("silent", "missing"),
    [
        ({"instant": None, "average": None}, {"power_watts_mean"}),
        ({"clock": None}, {"sm_clock_mhz_mean", "sm_clock_mhz_min"}),
        ({"temperature": None}, {"temperature_celsius_max"}),
        ({"reasons": None}, {"throttle_seconds", *THROTTLE_COLUMNS}),
        ({"used": None}, {"peak_vram_device_bytes"}),
        ({"energy": None, "instant": None, "average": None}, {"energy_joules", "power_watts_mean"}),
    ],
)
def test_what_a_card_does_not_tell_is_null_and_the_rest_is_measured(
    silent: dict[str, None], missing: set[str]
) -> None:
    card = Watched(**silent)

    card.begin()
    card.after(1, **{"energy": 1000, **silent})

    columns = card.end()
    assert set(columns) == EVERYTHING
    assert {name for name, value in columns.items() if value is None} == missing


def test_a_sum_of_which_a_part_was_not_seen_is_null_and_means_are_of_what_was() -> None:
    card = Watched(energy=None)

    card.begin()
    card.after(1, instant=None, average=None, reasons=None)
    card.after(1, instant=200_000, reasons=0)
    card.after(1)

    columns = card.end()
    assert columns["energy_joules"] is None
    assert columns["throttle_seconds"] is None
    assert columns["power_watts_mean"] == 200


def test_time_between_windows_counts_for_nothing() -> None:
    card = Watched()
    clip = Telemetry()

    for energy in (1000, 9000):
        card.begin(energy=energy)
        card.after(2, energy=energy + 500)
        card.end()
        clip.merge(card.window)
        card.after(60, instant=900_000, clock=100, used=4999)
        card.nvml.say(instant=300_000, clock=1500, used=1000)

    columns = clip.columns()
    assert columns["energy_joules"] == pytest.approx(1)
    assert columns["power_watts_mean"] == pytest.approx(300)
    assert columns["sm_clock_mhz_min"] == 1500
    assert columns["peak_vram_device_bytes"] == 1000


def test_nothing_was_seen_without_a_window() -> None:
    assert set(Telemetry().columns().values()) == {None}


def test_the_thread_samples_while_a_window_is_open_and_sleeps_otherwise() -> None:
    nvml = FakeNvml()
    asked = threading.Event()
    seen: list[str] = []
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: (  # type: ignore[method-assign]
        seen.append(threading.current_thread().name),
        asked.set(),
        SimpleNamespace(used=1),
    )[2]
    sampler = CardSampler(nvml, "card", 0.001)
    time.sleep(0.05)
    assert seen == []

    window = sampler.begin()
    seen.clear()
    asked.clear()
    assert asked.wait(10)
    sampler.end(window)

    assert "telemetry" in seen
    assert sampler.thread.daemon
    time.sleep(0.02)  # a sample that was being taken
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count


def test_a_lost_card_ends_neither_thread_nor_clip() -> None:
    nvml = FakeNvml()
    sampler = CardSampler(nvml, "card", 0.001)
    window = sampler.begin()
    names = ("instant", "average", "energy", "clock", "temperature", "reasons", "used")
    nvml.say(**dict.fromkeys(names))
    time.sleep(0.05)

    assert sampler.thread.is_alive()
    sampler.end(window)
    assert window.columns()["energy_joules"] is None
    assert window.columns()["peak_vram_device_bytes"] == 1000


@pytest.mark.parametrize("kind", ["GPU", "MIG"])
def test_the_card_is_found_by_its_uuid_a_slice_of_a_card_too(kind: str) -> None:
    nvml = FakeNvml()
    nvml.uuid = f"{kind}-{UUID}"

    sampler = sampler_of(UUID, nvml)

    assert sampler is not None
    window = sampler.begin()
    sampler.end(window)
    assert window.columns()["peak_vram_device_bytes"] == 1000


def test_an_unknown_card_or_a_missing_driver_gives_no_sampler() -> None:
    nvml = FakeNvml()
    nvml.has_driver = False

    assert sampler_of("ffff", FakeNvml()) is None
    assert sampler_of(UUID, nvml) is None
    assert make_sampler(torch.device("cpu")) is None


# -- in a clip --------------------------------------------------------------------------------


def test_a_clips_columns_cover_its_stages_and_the_encoding_it_caused_but_no_writing() -> None:
    card = Watched()
    cpu = torch.device("cpu")
    encoding, meter = StageMeter(cpu, card.sampler), StageMeter(cpu, card.sampler)

    def work(meter: StageMeter, stage: str, joules: float, *, on_device: bool = True) -> None:
        with meter.stage(stage, on_device=on_device):
            card.after(1, energy=(card.nvml.energy or 0) + 1000 * joules)
        card.after(5, energy=(card.nvml.energy or 0) + 77_000)  # between the stages

    work(encoding, "encode", 10)
    work(meter, "denoise", 100)
    work(meter, "decode", 20)
    work(meter, "write", 3, on_device=False)
    meter.add(encoding)

    columns = meter.columns()
    assert columns["energy_joules"] == pytest.approx(130)
    assert set(columns) >= EVERYTHING
    assert columns["encode_seconds"] == encoding.stages["encode"].seconds


def test_a_stage_that_fails_is_measured_and_its_window_closed() -> None:
    card = Watched()
    meter = StageMeter(torch.device("cpu"), card.sampler)

    def fail_late() -> None:
        card.after(1, energy=4000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), meter.stage("denoise"):
        fail_late()
    card.after(60, energy=99_000)

    assert meter.columns()["energy_joules"] == 4


def test_without_a_sampler_the_columns_are_left_out() -> None:
    meter = StageMeter(torch.device("cpu"))
    with meter.stage("denoise"):
        pass

    assert not EVERYTHING & set(meter.columns())


def test_merged_stages_add_their_seconds_and_keep_the_larger_peak() -> None:
    stage = Stage(1.0, 10, None)

    stage.merge(Stage(2.0, 7, 30))

    assert (stage.seconds, stage.peak_vram_allocated_bytes) == (3.0, 10)
    assert stage.peak_vram_reserved_bytes == 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_real_card_tells_its_power_memory_and_clock() -> None:
    device = torch.device("cuda", 0)
    meter = StageMeter(device, make_sampler(device))

    with meter.stage("denoise"):
        a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            (a @ a).sum().item()

    columns = meter.columns()
    assert columns["power_watts_mean"]
    assert columns["sm_clock_mhz_mean"]
    assert (columns["peak_vram_device_bytes"] or 0) > 4096 * 4096 * 2
    watts = (columns["energy_joules"] or 0) / meter.stages["denoise"].seconds
    assert watts == pytest.approx(columns["power_watts_mean"], rel=0.3)


# -- an error that is not the driver's --------------------------------------------------------


def broken(*_arguments: object) -> Any:
    raise AttributeError("this version of the library has no such function")


def test_an_error_that_is_not_the_drivers_costs_only_its_column() -> None:
    card = Watched()
    card.nvml.nvmlDeviceGetMemoryInfo = broken  # type: ignore[method-assign]

    card.begin(energy=7_000_000)
    card.after(2, energy=7_000_900)

    columns = card.end()
    assert columns["energy_joules"] == pytest.approx(0.9)
    assert columns["peak_vram_device_bytes"] is None


@pytest.mark.parametrize("name", ["begin", "end"])
def test_a_sampler_that_breaks_costs_no_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Watched()
    monkeypatch.setattr(card.sampler, name, broken)
    meter = StageMeter(torch.device("cpu"), card.sampler)

    with meter.stage("denoise"):
        pass

    assert meter.columns()["denoise_seconds"] is not None
    assert meter.columns().get("energy_joules") is None
