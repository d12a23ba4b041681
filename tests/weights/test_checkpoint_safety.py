"""A checkpoint is data: nothing in it runs."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoint import at, layout, write
from fakes.command import Answer
from fakes.runs import Project

import hv15_batch
from hv15_batch.config.settings import Config
from hv15_batch.engine.load.components import load_component
from hv15_batch.errors import Refused
from hv15_batch.weights.files import find_faults

NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2")
CPU = torch.device("cpu")


class Touches:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny checkpoint of one's own."""
    return shutil.copytree(tiny_folder("tiny_t2v"), tmp_path / "checkpoint")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """What hostile content makes when it runs."""
    return tmp_path / "it_ran"


def plant_pickles(folder: Path, mine: Path) -> None:
    for name in NETWORKS:
        for file in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "m.ckpt"):
            (folder / name / file).write_bytes(pickle.dumps(Touches(mine)))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def tiny(project: Project) -> Config:
    return project.config()


def load_all(folder: Path, config: Config) -> None:
    for name in (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler", "guider"):
        load_component(name, config, at(folder), CPU)


def test_the_planted_pickle_does_run_where_it_is_loaded(mine: Path) -> None:
    pickle.loads(pickle.dumps(Touches(mine)))

    assert mine.exists()


def test_pickles_beside_the_weights_are_never_loaded(
    folder: Path, mine: Path, tmp_path: Path
) -> None:
    plant_pickles(folder, mine)

    assert find_faults(folder) == []
    load_all(folder, tiny(Project(tmp_path)))

    assert not mine.exists()


def test_a_checkpoint_that_has_pickles_only_is_refused_and_says_what_to_do(
    folder: Path, mine: Path, tmp_path: Path
) -> None:
    plant_pickles(folder, mine)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()

    assert find_faults(folder) == [
        "vae/diffusion_pytorch_model.safetensors (or its index) is missing; "
        "diffusion_pytorch_model.bin is a pickle; loading one can run code, so it is not "
        "loaded: save the model again as safetensors"
    ]
    with pytest.raises(Refused, match="diffusion_pytorch_model"):
        load_component("vae", tiny(Project(tmp_path)), at(folder), CPU)
    assert not mine.exists()


@pytest.mark.parametrize("shard", ["model.bin", "../evil.safetensors", "/tmp/a.safetensors", 7])
def test_an_index_that_names_something_else_than_safetensors_beside_it_is_refused(
    tmp_path: Path, shard: Any
) -> None:
    files = layout()
    files["vae/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": shard}}
    ).encode()

    assert find_faults(write(tmp_path, files)) == [
        f"vae/diffusion_pytorch_model.safetensors.index.json names {shard!r}, which is no "
        "safetensors file beside it"
    ]


def test_code_beside_a_configuration_that_names_it_is_never_run(
    folder: Path, mine: Path, tmp_path: Path
) -> None:
    code = f"from pathlib import Path\nPath({str(mine)!r}).touch()\nclass Evil: pass\n"
    kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer"):
        (folder / name / "evil.py").write_text(code, encoding="utf-8")
        for file in ("config.json", "tokenizer_config.json"):
            if (folder / name / file).exists():
                edit(folder / name / file, auto_map=dict.fromkeys(kinds, "evil.Evil"))

    load_all(folder, tiny(Project(tmp_path)))

    assert not mine.exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (["os", "system"], "vae is of 'os'; only diffusers and transformers are loaded"),
        (["transformers", "AutoModel"], "vae is of class 'AutoModel'; a class must be named"),
        (["transformers", "models.x"], "vae is of class 'models.x'; a class must be named"),
        (["diffusers"], "vae is of class None; a class must be named"),
    ],
)
def test_a_component_of_another_library_or_of_an_auto_class_is_refused(
    folder: Path, tmp_path: Path, entry: list[str], words: str
) -> None:
    edit(folder / "model_index.json", vae=entry)

    assert find_faults(folder)[0].startswith(words)
    with pytest.raises(Refused, match=re.escape(words)):
        load_component("vae", tiny(Project(tmp_path)), at(folder), CPU)


def test_a_component_whose_name_is_a_path_is_refused(folder: Path) -> None:
    edit(folder / "model_index.json", **{"../../etc": ["diffusers", "AutoencoderKL"]})

    assert find_faults(folder) == ["model_index.json: '../../etc' is no name of a component"]


def test_a_configuration_that_names_a_kernel_of_the_hub_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    edit(folder / "text_encoder" / "config.json", attn_implementation="kernels-community/evil")

    words = (
        "text_encoder/config.json: attn_implementation='kernels-community/evil' names code to be "
        "fetched from the hub; delete that line"
    )
    assert find_faults(folder) == [words]
    with pytest.raises(Refused, match=re.escape(words)):
        load_component("text_encoder", tiny(Project(tmp_path)), at(folder), CPU)


def test_a_local_checkpoint_of_pickles_is_refused_by_the_command_with_nothing_made(
    folder: Path, mine: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    plant_pickles(folder, mine)
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")

    answer = command("p.csv", f"model.repo={folder}")

    assert answer.code == 2
    assert "is a pickle; loading one can run code" in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
    assert not mine.exists()


def test_the_package_has_no_way_to_load_a_pickle() -> None:
    ways = r"torch\.load|pickle\.load|allow_pickle|joblib|import dill|yaml\.load\((?!.*_LOADER)"
    ways += r"|trust_remote_code\"?\]? *[=:] *True"
    sources = sorted(Path(hv15_batch.__file__).parent.rglob("*.py"))

    assert len(sources) > 50
    assert [str(p) for p in sources if re.search(ways, p.read_text(encoding="utf-8"))] == []
