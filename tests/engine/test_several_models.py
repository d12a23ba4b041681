"""Several models in one worker: each transformer loaded once, encoders and VAE shared."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.engine import InProcessExecutor
from fakes.loras import lora_of, saved_lora
from fakes.runs import Project
from PIL import Image

from hv15_batch.config.settings import Order, SamplingConfig
from hv15_batch.engine.denoise import low_rank, pipeline
from hv15_batch.engine.encode import encoders
from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.engine.placement.placement import Placement
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig, OffloadKind
from hv15_batch.weights.checkpoint import resolve_checkpoint, tiny_root
from hv15_batch.weights.shared import IMAGE_PARTS, TEXT_PARTS, VAE_PARTS, group_by_parts

ROWS = ("cat,a cat,tiny_t2v,,0 1", "fox,a fox,tiny_i2v,a.png,0 1", "dog,a fox,tiny_t2v,,0")
SMALL = SamplingConfig(num_frames=1, num_inference_steps=1, guidance_scale=6.0)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    project = Project(tmp_path)
    project.write("id,prompt,model,image,seed", *ROWS)
    return project


def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Return what will be loaded, counted by component and model."""
    counts: Counter[tuple[str, str]] = Counter()

    def counted(name: str, config: Any, *rest: Any) -> Any:
        counts[name, config.model.name] += 1
        return original(name, config, *rest)

    original = pipeline.load_component
    monkeypatch.setattr(pipeline, "load_component", counted)
    monkeypatch.setattr(encoders, "load_component", counted)
    return counts


def latents(project: Project) -> dict[tuple[str, int], str]:
    return {(r["row_id"], r["seed"]): r["latents_sha256"] for r in project.records()}


def test_each_transformer_is_loaded_once_and_the_same_files_too(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = loads(monkeypatch)

    assert project.run(InProcessExecutor, override=SMALL) == 0

    by_part = {
        part: {model: n for (name, model), n in counts.items() if name == part}
        for part in ("transformer", "vae", "text_encoder", "image_encoder")
    }
    assert by_part["transformer"] == {"tiny_t2v": 1, "tiny_i2v": 1}
    assert by_part["text_encoder"] == {"tiny_t2v": 1}
    assert by_part["image_encoder"] == {"tiny_i2v": 1}
    assert sum(by_part["vae"].values()) == 1
    rows = [(r["row_id"], r["task"], r["load_seconds"] is not None) for r in project.records()]
    assert rows == [
        *(("cat", "t2v", True), ("dog", "t2v", False), ("cat", "t2v", False)),
        *(("fox", "i2v", True), ("fox", "i2v", False)),
    ]


def test_a_clip_is_the_same_as_in_a_run_of_its_model_alone(project: Project) -> None:
    assert project.run(InProcessExecutor, override=SMALL) == 0
    together = latents(project)

    for name, rows in (("t2v", (ROWS[0], ROWS[2])), ("i2v", ROWS[1:2])):
        alone = Project(project.folder, f"{name}.csv")
        alone.write("id,prompt,model,image,seed", *rows)
        folder = str(project.folder / name)
        assert alone.run(InProcessExecutor, override=SMALL, run_dir=folder) == 0
        alone_latents = latents(_at(alone, folder))
        assert alone_latents == {key: together[key] for key in alone_latents}


def _at(project: Project, folder: str) -> Any:
    from hv15_batch.rundir.log import read_records
    from hv15_batch.rundir.paths import RunDir

    class Here:
        @staticmethod
        def records() -> list[dict[str, Any]]:
            return list(read_records(RunDir(Path(folder)).log).to_pylist())

    return Here


def test_models_share_what_has_the_same_content_and_nothing_else() -> None:
    names = ("demo_t2v", "demo_i2v", "tiny_t2v")
    options = [model_options()[name] for name in names]
    models = []
    for option in options:
        folder = ensure_checkpoint(option, tiny_root())
        models.append((option, replace(resolve_checkpoint(option), folder=folder)))

    texts, vaes = group_by_parts(models, TEXT_PARTS), group_by_parts(models, VAE_PARTS)
    images = group_by_parts(models, IMAGE_PARTS)

    assert texts == vaes == {"demo_t2v": "demo_t2v", "demo_i2v": "demo_t2v", "tiny_t2v": "tiny_t2v"}
    assert images["demo_i2v"] == "demo_i2v"


def test_random_weights_of_full_size_share_their_encoders() -> None:
    names = ("480p_t2v", "480p_i2v", "480p_i2v_step_distilled")
    options = [replace(model_options()[n], weights=RANDOM) for n in names]

    def shared(parts: tuple[str, ...]) -> set[str]:
        return set(group_by_parts(((o, resolve_checkpoint(o)) for o in options), parts).values())

    assert shared(TEXT_PARTS) == {"480p_t2v"}
    assert shared(("transformer",)) == set(names)


RANDOM = type(model_options()["480p_t2v"].weights).random


def test_files_of_the_hub_are_known_by_their_name_there(tmp_path: Path) -> None:
    option = model_options()["tiny_t2v"]
    source = ensure_checkpoint(option, tiny_root())
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "vae").mkdir(parents=True)
        (folder / "model_index.json").write_text((source / "model_index.json").read_text())
        (folder / "vae" / "weights.safetensors").symlink_to(f"../../blobs-{name}/{'a' * 64}")
        (tmp_path / f"blobs-{name}").mkdir()
        (tmp_path / f"blobs-{name}" / ("a" * 64)).write_text(name)  # not read
        checkpoint = replace(resolve_checkpoint(option), folder=folder)
        found.append((ModelConfig(name=name, weights=option.weights), checkpoint))

    assert set(group_by_parts(found, VAE_PARTS).values()) == {"one"}


def test_what_is_released_is_off_the_placement() -> None:
    placement = Placement(OffloadKind.model, torch.device("cpu"), Path())
    vae = torch.nn.Linear(2, 2)
    placement.hold_vae(vae)
    placement.hold_transformer(torch.nn.Linear(2, 2))

    placement.release(keeps_vae=True)

    assert vars(placement)["_transformer"] is vars(placement)["_vae"] is None


# -- LoRAs ------------------------------------------------------------------------------------


@pytest.fixture
def with_lora(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    saved_lora(tmp_path / "x.safetensors", lora_of("tiny_t2v"))
    project.write("id,prompt,loras", "a,a cat,x.safetensors", "b,a cat,")
    return project


class Short:
    """Runs out of memory when the first LoRA is set."""

    def __init__(self) -> None:
        self.sets: list[int] = []
        self._set = low_rank.LoraSet.set

    def __call__(self, lora_set: low_rank.LoraSet, loras: Any) -> None:
        self.sets.append(len(loras))
        if self.sets == [1]:
            raise torch.OutOfMemoryError("planted")
        self._set(lora_set, loras)


def test_memory_that_runs_out_while_a_lora_is_loaded_takes_the_next_smaller_profile(
    with_lora: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Short()
    monkeypatch.setattr(low_rank.LoraSet, "set", lambda *given: short(*given))

    assert with_lora.run(InProcessExecutor, override=SMALL) == 0

    first, second = with_lora.records()
    assert short.sets[:2] == [1, 1]
    assert {first["offload"], second["offload"]} <= {"stream", "stream_disk"}
    assert (first["row_id"], first["lora_keys_matched"]) == ("a", 2)


def test_a_clip_that_is_only_decoded_does_not_load_its_lora(
    with_lora: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_lora.run(InProcessExecutor, override=SMALL, order=Order.rows) == 0
    for clip in with_lora.run_dir.clips.glob("a_*.mp4"):
        clip.unlink()
    latents_of_b = next(r["denoise_sha256"] for r in with_lora.records() if r["row_id"] == "b")
    with_lora.run_dir.latents_file(latents_of_b).unlink()
    for clip in with_lora.run_dir.clips.glob("b_*.mp4"):
        clip.unlink()
    short = Short()
    monkeypatch.setattr(low_rank.LoraSet, "set", lambda *given: short(*given))

    assert with_lora.run(InProcessExecutor, override=SMALL, order=Order.rows) == 0

    assert short.sets == [0]
