"""A clip that is shown while it denoises: what the picture is, what it costs, what it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.checkpoint import at
from fakes.pipelines import T2V, a_clip, cached_conditioning, ignore_steps, tiny_config
from fakes.runs import Project
from fakes.worker import spec
from PIL import Image

from benchmarks.preview import decibels
from hv15_batch.dispatch.protocol import Job
from hv15_batch.engine.denoise.pipeline import denoise, load_denoiser
from hv15_batch.engine.encode.cache import EmbeddingCache
from hv15_batch.engine.preview import learning, preview
from hv15_batch.engine.preview.colours import NUM_TERMS, ColourMap, fit, psnr
from hv15_batch.engine.preview.of_clips import ClipPreviews
from hv15_batch.engine.preview.preview import Previews
from hv15_batch.model.variant import Weights
from hv15_batch.rundir.chosen.previews import clear_previews, found_previews, preview_file
from hv15_batch.rundir.paths import RunDir

KEY = "a" * 64


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.path.mkdir()
    return made


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(preview, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "previews" / f"{KEY}.safetensors"


def made_of(red: int = 0) -> ColourMap:
    """Red is latent channel 0 of the place itself, and a half is neither."""
    weights = torch.zeros(NUM_TERMS, 3)
    weights[red * 9 + 4, 0] = 1.0
    return ColourMap(weights)


def key() -> str:
    return KEY


def seen(path: Path) -> tuple[int, ...]:
    with Image.open(path) as image:
        return tuple(image.convert("RGB").resize((1, 1)).getpixel((0, 0)))  # type: ignore[arg-type]


# -- what is shown ----------------------------------------------------------------------------


def test_watching_changes_no_bit_and_the_last_prediction_is_the_clip(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    clip, folder = a_clip(T2V, guidance_scale=6.0), folder_of(T2V)
    config = tiny_config(T2V)
    conditioning = cached_conditioning(
        config, at(folder), clip, Path(), EmbeddingCache(tmp_path / "embeddings")
    )
    pipe = load_denoiser(config, at(folder))
    told: list[tuple[int, int]] = []
    predicted: list[torch.Tensor] = []

    def watch(step: int, steps: int, sigma: Any, latents: Any, velocity: Any) -> None:
        told.append((step, steps))
        predicted.append(latents - sigma * velocity)

    plain = denoise(pipe, clip, conditioning, ignore_steps).latents
    watched = denoise(pipe, clip, conditioning, ignore_steps, watch).latents
    after = denoise(pipe, clip, conditioning, ignore_steps).latents

    assert torch.equal(plain, watched)
    assert torch.equal(plain, after)
    assert told == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(predicted[-1], plain)
    assert (predicted[0] - plain).std() < (torch.randn_like(plain) - plain).std()


def test_the_picture_is_of_the_clip_predicted_not_of_its_noise(
    run_dir: RunDir, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "MOST_OF_THE_TIME", 1e9)
    learning.write_colours(kept, KEY, made_of())
    previews = Previews(run_dir, 2, print)
    watch = previews.watch(key)
    assert watch is not None
    noise = torch.randn(1, 32, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    clean = torch.full_like(noise, 0.3)

    watch(1, 10, torch.tensor(0.9), 0.1 * clean + 0.9 * noise, noise - clean)

    assert preview_file(run_dir, 2) == run_dir.path / "previews" / "worker-2.jpg"
    red, green, blue = seen(preview_file(run_dir, 2))
    assert abs(red - 0.8 * 255) < 4
    assert abs(green - 127.5) < 4
    assert abs(blue - 127.5) < 4
    with Image.open(preview_file(run_dir, 2)) as image:
        assert image.size == (6 * 64, 4 * 64)
    assert list(found_previews(run_dir)) == [(0, 2)]
    previews.end()
    assert found_previews(run_dir) == {}


def test_every_few_steps_there_is_a_new_one_and_none_of_the_last(
    run_dir: RunDir, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "MOST_OF_THE_TIME", 1e9)
    learning.write_colours(kept, KEY, made_of())
    watch = Previews(run_dir, 0, print).watch(key)
    assert watch is not None
    latents, written = torch.zeros(1, 32, 2, 4, 6), []
    for step in range(1, 51):
        watch(step, 50, torch.tensor(0.5), latents, latents)
        if preview_file(run_dir, 0).exists():
            written.append(step)
            preview_file(run_dir, 0).unlink()

    assert written == list(range(5, 50, 5))


def test_pictures_take_at_most_a_hundredth_of_the_time(
    run_dir: RunDir, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.write_colours(kept, KEY, made_of())
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(preview.time, "perf_counter", lambda: clock.now)
    pictures = []

    def write(*_: Any) -> None:
        pictures.append(clock.now)
        clock.now += 5.0

    monkeypatch.setattr(preview, "write_preview", write)
    watch = Previews(run_dir, 0, print).watch(key)
    assert watch is not None
    latents = torch.zeros(1, 32, 2, 4, 6)
    for step in range(1, 1000):
        clock.now += 2.0
        watch(step, 1000, torch.tensor(0.5), latents, latents)

    assert 2 < len(pictures) <= 0.01 * clock.now / 5.0


# -- where the colours come from --------------------------------------------------------------


class Vae:
    """Gives nothing: what is learnt from it is replaced."""

    @contextmanager
    def on_device(self) -> Iterator[Any]:
        yield self


def learning_of(
    monkeypatch: pytest.MonkeyPatch, result: ColourMap
) -> tuple[list[int], Callable[..., Any]]:
    calls: list[int] = []

    def learn(*_: Any) -> ColourMap:
        calls.append(1)
        return result

    monkeypatch.setattr(preview, "learn", learn)
    return calls, Vae().on_device


def a_decoded_clip() -> tuple[torch.Tensor, torch.Tensor]:
    """A clip that `made_of()` fits: its red is 0.5 more than its latent channel 0."""
    latents = torch.zeros(1, 32, 2, 4, 6)
    latents[:, 0] = torch.linspace(-0.4, 0.4, 6)
    red = ((latents[0, 0, 0] + 0.5) * 255).round()
    frames = torch.full((5, 64, 96, 3), 127, dtype=torch.uint8)
    frames[..., 0] = red.repeat_interleave(16, 0).repeat_interleave(16, 1).to(torch.uint8)
    return latents, frames


def test_until_a_clip_is_decoded_nothing_is_shown_and_later_runs_know_the_colours(
    run_dir: RunDir, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, vae = learning_of(monkeypatch, made_of())
    first = Previews(run_dir, 0, print)
    assert first.watch(key) is None
    first.decoded(key, vae, *a_decoded_clip())
    first.decoded(key, vae, *a_decoded_clip())
    assert first.watch(key) is not None

    later = Previews(run_dir, 0, print)
    assert later.watch(key) is not None
    later.decoded(key, vae, *a_decoded_clip())

    assert calls == [1]
    assert kept.is_file()


def test_kept_colours_that_do_not_fit_a_clip_are_learnt_again(
    run_dir: RunDir, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, vae = learning_of(monkeypatch, made_of())
    learning.write_colours(kept, KEY, ColourMap(-5 * made_of().weights))
    previews = Previews(run_dir, 0, print)
    previews.decoded(key, vae, *a_decoded_clip())

    assert calls == [1]
    found = learning.read_colours(kept, KEY)
    assert found is not None
    assert torch.equal(found.weights, made_of().weights)


def test_what_is_damaged_strange_or_of_another_vae_is_not_read(kept: Path) -> None:
    learning.write_colours(kept, "b" * 64, made_of())
    assert learning.read_colours(kept, KEY) is None
    whole = made_of().weights
    for weights in (whole.double(), whole[:-1].clone(), whole / 0):
        learning.write_colours(kept, KEY, ColourMap(weights))
        assert learning.read_colours(kept, KEY) is None
    learning.write_colours(kept, KEY, made_of())
    assert learning.read_colours(kept, KEY) is not None
    kept.write_bytes(kept.read_bytes()[:-100])
    assert learning.read_colours(kept, KEY) is None
    kept.write_bytes(bytes(2**21))
    assert learning.read_colours(kept, KEY) is None


def test_a_failure_is_told_once_and_the_clip_goes_on(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def fail(*_: Any) -> ColourMap:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(preview, "learn", fail)
    previews = Previews(run_dir, 0, told.append)
    previews.decoded(key, Vae().on_device, *a_decoded_clip())
    previews.decoded(key, Vae().on_device, *a_decoded_clip())

    assert told == [
        "clips are not shown while they denoise (OutOfMemoryError: none left)",
    ]


def test_a_folder_that_is_a_link_is_not_written_through(
    run_dir: RunDir, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "MOST_OF_THE_TIME", 1e9)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "worker-0.jpg").write_text("mine")
    (run_dir.path / "previews").symlink_to(elsewhere)
    learning.write_colours(kept, KEY, made_of())
    previews, latents = Previews(run_dir, 0, print), torch.zeros(1, 32, 2, 4, 6)
    watch = previews.watch(key)
    assert watch is not None
    watch(1, 1, torch.tensor(0.5), latents, latents)
    watch(1, 2, torch.tensor(0.5), latents, latents)
    previews.end()
    clear_previews(run_dir)

    assert [path.name for path in elsewhere.iterdir()] == ["worker-0.jpg"]
    assert (elsewhere / "worker-0.jpg").read_text() == "mine"


def test_a_start_leaves_other_files_in_the_folder_alone(run_dir: RunDir) -> None:
    folder = run_dir.path / "previews"
    folder.mkdir()
    for name in ("worker-0.jpg", "worker-17.jpg", "mine.jpg"):
        (folder / name).write_text("")
    clear_previews(run_dir)

    assert [path.name for path in folder.iterdir()] == ["mine.jpg"]
    (folder / "mine.jpg").unlink()
    clear_previews(run_dir)
    assert not folder.exists()


# -- which clips are shown --------------------------------------------------------------------


@pytest.mark.parametrize("why", ["", "preview=false", "random", "tiny", "a repetition"])
def test_noise_repetitions_and_what_is_switched_off_are_not_shown(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.run_dir.path.mkdir(parents=True)
    job = Job(a_clip(T2V), 1, True)
    given = spec(project)
    weights = Weights.demo
    if why == "preview=false":
        given = replace(given, config=replace(given.config, preview=False))
    elif why in ("random", "tiny"):
        weights = Weights[why]
    elif why:
        job = replace(job, repeat=1)
    model: Any = SimpleNamespace(
        config=SimpleNamespace(model=SimpleNamespace(weights=weights, name="m")),
        checkpoint=None,
        ladder=SimpleNamespace(watch=None, vae=Vae().on_device),
    )
    monkeypatch.setattr("hv15_batch.engine.preview.of_clips.parts_sha256", lambda *_: KEY)
    calls, _ = learning_of(monkeypatch, made_of())
    previews = ClipPreviews(given)
    with previews.showing(job, model, print):
        assert model.ladder.watch is None
    previews.decoded(job, model, *a_decoded_clip())
    with previews.showing(job, model, print):
        assert (model.ladder.watch is not None) == (not why)
    assert model.ladder.watch is None
    assert calls == ([] if why else [1])


# -- on the demo VAE --------------------------------------------------------------------------


def test_a_map_that_is_linear_is_found_again_and_kept(kept: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(32, 4, 16, 16, generator=generator)
    weights = torch.randn(NUM_TERMS, 3, generator=generator) * 0.01
    wanted = torch.stack([ColourMap(weights).colours(latents[:, t]) for t in range(4)])

    found = fit([(latents, wanted)])

    other = torch.randn(32, 16, 16, generator=generator)
    assert psnr(found.colours(other), ColourMap(weights).colours(other)) > 30
    learning.write_colours(kept, KEY, found)
    read = learning.read_colours(kept, KEY)
    assert read is not None
    assert torch.equal(read.weights, found.weights)


@pytest.mark.exhaustive
def test_colours_of_one_demo_clip_have_18_db_on_others() -> None:
    seconds, found = decibels(num_clips=6, num_frames=9)
    print(f"learned in {seconds:.1f} s", [round(value, 1) for value in found])

    assert min(found) >= 18
