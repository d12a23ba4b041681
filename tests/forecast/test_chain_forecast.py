"""What chains add to the prediction of a run: encoders that come back, models that do, frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fakes.planned import BASE, clip_of, planned_clip

from hv15_batch.clip import Source
from hv15_batch.config.settings import Config
from hv15_batch.forecast.disk import disk_need
from hv15_batch.forecast.forecast import make_forecast
from hv15_batch.forecast.seconds import DISK_BYTES_PER_SECOND, ENCODE_SECONDS
from hv15_batch.machine.machine import read_machine
from hv15_batch.model.options import model_options
from hv15_batch.model.shapes import IMAGE_ENCODER_BYTES, TRANSFORMER_BYTES
from hv15_batch.planning.plan import PlannedClip

T2V, I2V = model_options()["480p_t2v_distilled"], model_options()["480p_i2v_distilled"]
OTHER = model_options()["480p_i2v"]


def chain(*models: str) -> list[PlannedClip]:
    """Return a chain of clips; the first one begins with no frame."""
    clips = [clip_of(0, BASE)]
    for number, model in enumerate(models, 1):
        before = clips[-1]
        first = before.source.first if before.source else before
        source = Source(
            *(before.settings_sha256, before.denoise_sha256, before.clip_id, 120, number, first)
        )
        settings = replace(BASE, model=model, image_source=source.key)
        clips.append(replace(clip_of(number, settings), source=source))
    return [planned_clip(clip) for clip in clips]


def start_seconds(todo: list[PlannedClip]) -> float:
    config = Config(model=T2V, models={I2V.name: I2V, OTHER.name: OTHER})
    config = replace(config, runtime=replace(config.runtime, card="RTX 4090"))
    forecast = make_forecast(config, todo, read_machine(), Path("nowhere"), rows=[])
    assert forecast is not None
    return sum(each.start.seconds for each in forecast.each)


def test_each_round_reads_the_image_encoder_again_and_encodes_its_frame() -> None:
    one, three = chain(I2V.name), chain(*[I2V.name] * 3)
    more = 2 * (IMAGE_ENCODER_BYTES / DISK_BYTES_PER_SECOND + ENCODE_SECONDS)
    assert abs(start_seconds(three) - start_seconds(one) - more) < 1e-6


def test_a_model_that_comes_back_is_loaded_again() -> None:
    apart, back = chain(I2V.name, OTHER.name, OTHER.name), chain(I2V.name, OTHER.name, I2V.name)
    more = TRANSFORMER_BYTES / DISK_BYTES_PER_SECOND
    assert abs(start_seconds(back) - start_seconds(apart) - more) < 1e-6


def test_kept_frames_take_room_on_the_disk() -> None:
    (plain,) = chain()
    kept = replace(plain, clip=replace(plain.clip, kept_frames=(0, 120)))
    before, after = (disk_need([p], Config(model=T2V), 1) for p in (plain, kept))
    assert after.clip_bytes[0] - before.clip_bytes[0] == 2 * 480 * 848 * 3
