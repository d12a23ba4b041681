"""`loras` cells and `model.loras`: which files they name, what is refused, and what a run makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fakes import loras
from fakes.command import Answer
from safetensors.torch import load_file

from hv15_batch.config.settings import Config
from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ManifestError, parse_loras
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Lora, ModelConfig, Task
from hv15_batch.planning.loras import FoundLoras, find_loras
from hv15_batch.weights._lora_names import target_table
from hv15_batch.weights.checkpoint import resolve_checkpoint, tiny_root
from hv15_batch.weights.layouts import SIZE_KEYS
from hv15_batch.weights.lora import LoraFile, open_lora
from hv15_batch.weights.transformer import transformer_arguments

SMALL = ("model=tiny_t2v", "override.num_frames=5", "override.num_inference_steps=2")


@pytest.fixture(scope="module")
def weights() -> loras.Tensors:
    folder = ensure_checkpoint(model_options()["tiny_t2v"], tiny_root())
    return load_file(next((folder / "transformer").glob("*.safetensors")))


@pytest.fixture
def files(tmp_path: Path, weights: loras.Tensors) -> dict[str, str]:
    """Two LoRAs in a folder of their own, `in/` beside the manifest; their hashes."""
    (tmp_path / "in").mkdir()
    made = {
        "a.safetensors": loras.musubi(loras.adapter(weights, 0, 0.1)),
        "my b.safetensors": loras.comfy(loras.adapter(weights, 1, 0.1)),
    }
    paths = [loras.saved_lora(tmp_path / "in" / name, t) for name, t in made.items()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def manifest(tmp_path: Path, *cells: str) -> Path:
    path = tmp_path / "p.csv"
    lines = [f'cat{n},a cat,"{cell.replace(chr(34), chr(34) * 2)}"' for n, cell in enumerate(cells)]
    path.write_text("\n".join(["id,prompt,loras", *lines]) + "\n")
    return path


def found(path: Path, *typed: Lora) -> tuple[FoundLoras, list[Any]]:
    """What a manifest needs, and its clips."""
    config = Config(model=replace(model_options()["tiny_t2v"], loras=list(typed)))
    rows = read_manifest(path, Task.t2v)
    known = find_loras(config, rows, {config.model.name: resolve_checkpoint(config.model)})
    clips = make_clips(rows, config, None, None, known.by_path)
    return known, [clip.settings.loras for clip in clips]


@pytest.mark.parametrize(
    ("cell", "parsed"),
    [
        ("a.safetensors", (("a.safetensors", 1.0),)),
        ("a.safetensors:0.8", (("a.safetensors", 0.8),)),
        ("a.safetensors:-1  b.safetensors", (("a.safetensors", -1.0), ("b.safetensors", 1.0))),
        ('"my a.safetensors":0.5 b', (("my a.safetensors", 0.5), ("b", 1.0))),
        ("none", ()),
        ("NONE", ()),
        ([], ()),
        ([{"path": "a"}, {"path": "b", "scale": 2}], (("a", 1.0), ("b", 2.0))),
    ],
)
def test_a_cell_names_files_and_scales(cell: Any, parsed: Any) -> None:
    assert parse_loras(cell) == parsed


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("a:x", "x is no scale of a LoRA"),
        ("a:nan", "is no scale of a LoRA"),
        ("a:1000", "a scale is -100 to 100; 1 is usual"),
        ('"a', "name files as path or path:scale"),
        ('"a"b', "name files as path or path:scale"),
        ("a a", "a file counts once, and a stands here twice; remove one"),
        ([{"scale": 1}], "objects with path and scale"),
        (["a"], "objects with path and scale"),
        (" ".join(map(str, range(17))), "at most 16 LoRAs work together"),
        (3, "must be text"),
    ],
)
def test_a_cell_of_another_form_is_refused(cell: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_loras(cell)


def test_a_cell_replaces_the_typed_ones_and_starts_at_the_manifest(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = manifest(
        tmp_path, "", "none", "in/a.safetensors:0", '"in/my b.safetensors":0.5 in/a.safetensors'
    )

    known, identities = found(path, Lora("../in/a.safetensors", 2.0))

    a, b = files["a.safetensors"], files["my b.safetensors"]
    assert identities == [((a, 2.0),), None, tuple(sorted([(b, 0.5), (a, 1.0)]))]
    assert len(known.notes) == 2  # each has its alpha, so no warning stands beside
    assert known.notes[0].startswith("LoRA a.safetensors: ")


def test_a_clip_without_a_lora_keeps_its_id(tmp_path: Path, files: dict[str, str]) -> None:
    path = manifest(tmp_path, "", "in/a.safetensors:0.5", "in/a.safetensors:0.6")
    rows = read_manifest(path, Task.t2v)
    config = Config(model=model_options()["tiny_t2v"])
    known = find_loras(config, rows, {config.model.name: resolve_checkpoint(config.model)})

    with_cells = make_clips(rows, config, None, None, known.by_path)
    plain = make_clips(read_manifest(manifest(tmp_path, ""), Task.t2v), config, None)

    assert with_cells[0].settings_sha256 == plain[0].settings_sha256
    assert len({clip.settings_sha256 for clip in with_cells}) == 3
    assert len({clip.denoise_sha256 for clip in with_cells}) == 3


def broken(tmp_path: Path, weights: loras.Tensors, how: str) -> Path:
    made = loras.adapter(weights)
    tensors = loras.diffusers(made)
    key = "transformer.transformer_blocks.1.attn.to_q"
    if how == "of another model":
        tensors = {f"blocks.{name}": tensor for name, tensor in tensors.items()}
    elif how == "of another size":
        tensors[f"{key}.lora_A.weight"] = torch.zeros(3, 3072)
    elif how == "half of a pair":
        del tensors[f"{key}.lora_B.weight"]
    elif how == "a DoRA":
        tensors[f"{key}.lora_magnitude_vector"] = torch.ones(64)
    elif how == "8 bits":
        tensors[f"{key}.lora_A.weight"] = tensors[f"{key}.lora_A.weight"].to(torch.float8_e4m3fn)
    elif how == "rank-stabilised":
        settings = json.dumps({"transformer.use_rslora": True})
        return loras.saved_lora(
            tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": settings}
        )
    return loras.saved_lora(tmp_path / "x.safetensors", tensors)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("of another model", r"none of its 46 tensors belongs to a LoRA of HunyuanVideo-1\.5"),
        (
            "of another size",
            r"transformer_blocks\.1\.attn\.to_q\.lora_A\.weight \[3, 3072\] and .* do not fit "
            r"transformer_blocks\.1\.attn\.to_q with 64 outputs and 64 inputs",
        ),
        ("half of a pair", r"transformer_blocks\.1\.attn\.to_q lacks its up matrix"),
        ("a DoRA", r"lora_magnitude_vector is of a DoRA adapter, and only LoRA is supported"),
        ("8 bits", r"lora_A\.weight is F8_E4M3; known are BF16, F16, F32"),
        ("rank-stabilised", "its settings have use_rslora=True, which is not supported"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_by_name(
    how: str, words: str, tmp_path: Path, weights: loras.Tensors
) -> None:
    file = broken(tmp_path, weights, how)

    with pytest.raises(ManifestError, match=r"p\.csv:2: loras=x\.safetensors: .*" + words):
        found(manifest(tmp_path, "x.safetensors"))
    with pytest.raises(Refused, match=r"model\.loras: .*x\.safetensors: .*" + words):
        found(manifest(tmp_path, ""), Lora(str(file)))


@pytest.mark.parametrize(
    "how", ["two namings", "fused and apart", "two ends for one part", "two ends with a default"]
)
def test_a_file_that_changes_a_module_twice_is_refused(
    how: str, tmp_path: Path, weights: loras.Tensors
) -> None:
    made = loras.adapter(weights)
    plain = loras.diffusers(made)
    key = "transformer.transformer_blocks.1.attn.to_q"
    one = f"{key}.lora_A.weight"
    if how == "two namings":
        tensors = plain | loras.musubi(made)
        one = "transformer.context_embedder.proj_in.lora_A.weight"
        other = "lora_unet_txt_in_input_embedder.lora_down.weight"
    elif how == "fused and apart":
        q = {name: tensor for name, tensor in plain.items() if name.startswith(key)}
        tensors = q | loras.musubi_comfy(made)
        other = "lora_unet_double_blocks_1_img_attn_qkv.lora_down.weight"
    else:
        other = f"{key}.lora_{'down' if how == 'two ends for one part' else 'A.default'}.weight"
        tensors = plain | {other: plain[one]}
    loras.saved_lora(tmp_path / "x.safetensors", tensors)

    with pytest.raises(ManifestError, match="are for the same module, so it would be") as caught:
        found(manifest(tmp_path, "x.safetensors"))

    assert one in str(caught.value)
    assert other in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("no.safetensors", "the file must exist"),
        ("p.csv", "a LoRA is a .safetensors file, and p.csv is none"),
        ("https://a/b.safetensors", "a manifest names files only, and this is an address"),
    ],
)
def test_a_cell_that_names_no_lora_is_refused_with_its_line(
    cell: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=rf"p\.csv:2: loras=.*{words}"):
        found(manifest(tmp_path, cell))


def test_one_file_under_two_names_and_typed_ones_that_never_count_are_refused(
    tmp_path: Path, files: dict[str, str]
) -> None:
    (tmp_path / "in/copy.safetensors").write_bytes((tmp_path / "in/a.safetensors").read_bytes())
    twice = "in/a.safetensors in/copy.safetensors"

    with pytest.raises(ManifestError, match=r"copy\.safetensors are the same file; remove one"):
        found(manifest(tmp_path, twice))
    with pytest.raises(Refused, match=r"every row of .* has loras of its own, which replace"):
        found(manifest(tmp_path, "none"), Lora(str(tmp_path / "in/a.safetensors")))
    with pytest.raises(Refused, match=r"a\.safetensors: must be -100 to 100"):
        found(manifest(tmp_path, ""), Lora(str(tmp_path / "in/a.safetensors"), 1e6))
    with pytest.raises(Refused, match="its SHA-256 is "):
        found(manifest(tmp_path, ""), Lora(str(tmp_path / "in/a.safetensors"), 1.0, "0" * 64))


def test_what_belongs_to_nothing_is_counted_and_told(
    tmp_path: Path, weights: loras.Tensors
) -> None:
    tensors = loras.peft(loras.adapter(weights)) | {"lora_te_x.alpha": torch.ones(1)}
    loras.saved_lora(tmp_path / "x.safetensors", tensors)

    known, _ = found(manifest(tmp_path, "x.safetensors"))

    assert known.notes == (
        "WARNING: LoRA x.safetensors: 42 of 43 tensors are used; the others have names that "
        "this model lacks: lora_te_x.alpha",
        "WARNING: LoRA x.safetensors: its file has no alpha, so alpha is taken to be the rank; "
        "if it is another number, write ALPHA/RANK as the scale",
    )


def opened(file: Path) -> LoraFile:
    config: ModelConfig = model_options()["tiny_t2v"]
    return open_lora(file, "x", transformer_arguments(config))


def with_settings(tmp_path: Path, weights: loras.Tensors, settings: str) -> Path:
    tensors = loras.diffusers(loras.adapter(weights))
    metadata = {"lora_adapter_metadata": settings}
    return loras.saved_lora(tmp_path / "x.safetensors", tensors, metadata)


@pytest.mark.parametrize("alpha", [6, 6.0, "6", " 6.0 "])
def test_the_alpha_that_diffusers_stores_counts(
    alpha: Any, tmp_path: Path, weights: loras.Tensors
) -> None:
    settings = json.dumps({"transformer.r": 3, "transformer.lora_alpha": alpha})
    file = with_settings(tmp_path, weights, settings)

    assert {pair.alpha for pair in opened(file).pairs} == {6.0}
    notes = found(manifest(tmp_path, "x.safetensors"))[0].notes
    assert [note for note in notes if "alpha" in note] == []


@pytest.mark.parametrize("first", ["transformer", "text_encoder", "text_encoder_2"])
def test_settings_of_a_text_encoder_are_not_the_transformers(
    first: str, tmp_path: Path, weights: loras.Tensors
) -> None:
    others = {"text_encoder.lora_alpha": 99, "text_encoder_2.use_dora": True}
    settings = {f"{first}.lora_alpha": 7} | others | {"transformer.lora_alpha": 6}
    file = with_settings(tmp_path, weights, json.dumps(settings))

    assert {pair.alpha for pair in opened(file).pairs} == {6.0}


def test_an_alpha_of_a_text_encoder_alone_is_no_alpha(
    tmp_path: Path, weights: loras.Tensors
) -> None:
    file = with_settings(tmp_path, weights, '{"text_encoder.lora_alpha": 99}')

    assert opened(file).lacks_alpha


def test_two_alphas_that_differ_are_refused_by_their_names(
    tmp_path: Path, weights: loras.Tensors
) -> None:
    with_settings(tmp_path, weights, '{"transformer.lora_alpha": 6, "unet.lora_alpha": 7}')

    with pytest.raises(ManifestError, match=r"transformer\.lora_alpha and unet\.lora_alpha, which"):
        found(manifest(tmp_path, "x.safetensors"))


@pytest.mark.parametrize("settings", ["{}", '{"transformer.lora_alpha": null}'])
def test_an_alpha_that_stands_nowhere_is_told(
    settings: str, tmp_path: Path, weights: loras.Tensors
) -> None:
    with_settings(tmp_path, weights, settings)

    notes = found(manifest(tmp_path, "x.safetensors"))[0].notes

    assert [note.startswith("WARNING: ") for note in notes] == [False, True]
    assert (
        "its file has no alpha, so alpha is taken to be the rank; if it is another number"
        in notes[1]
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[" * 100_000, r"its settings \(lora_adapter_metadata\) are no JSON \(nested more than"),
        ("{", r"its settings \(lora_adapter_metadata\) are no JSON"),
        (
            f'{{"t.lora_alpha": 1{"0" * 400}}}',
            "lora_alpha=1000.*, which is no number that can be used",
        ),
        ('{"t.lora_alpha": NaN}', "lora_alpha=NaN, which is no number that can be used"),
        ('{"t.lora_alpha": true}', "lora_alpha=true, which is no number that can be used"),
        ('{"t.lora_alpha": "much"}', "lora_alpha=much, which is no number that can be used"),
        ('{"t.lora_alpha": [6]}', r"lora_alpha=\[6\], which is no number that can be used"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(
    settings: str, words: str, tmp_path: Path, weights: loras.Tensors
) -> None:
    with_settings(tmp_path, weights, settings)

    with pytest.raises(ManifestError, match=words):
        found(manifest(tmp_path, "x.safetensors"))


SIZES = transformer_arguments(model_options()["tiny_t2v"])


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [None, "x"])
def test_a_model_without_a_number_is_refused_by_file_and_key(
    key: str, value: Any, tmp_path: Path, files: dict[str, str]
) -> None:
    """Of the keys that tell no size, none is asked for."""
    (tmp_path / "transformer").mkdir()
    config = tmp_path / "transformer/config.json"
    content = SIZES | {key: value}
    if value is None:
        del content[key]
    config.write_text(json.dumps(content))
    rows = read_manifest(manifest(tmp_path, "in/a.safetensors"), Task.t2v)
    asked = Config(model=model_options()["tiny_t2v"])
    checkpoint = replace(resolve_checkpoint(asked.model), folder=tmp_path)

    if key not in SIZE_KEYS:
        assert find_loras(asked, rows, {asked.model.name: checkpoint}).by_path
        return
    what = "is x" if value else "is missing"
    with pytest.raises(Refused, match=rf"transformer/config\.json: {key} {what}; a LoRA is comp"):
        find_loras(asked, rows, {asked.model.name: checkpoint})


FORGED = "\nlora_te_done: 3 of 3 done\x1b[2J" + "x" * 1_000_000


def test_a_name_that_stands_in_a_file_is_told_on_one_short_line(
    tmp_path: Path, weights: loras.Tensors
) -> None:
    tensors = loras.musubi(loras.adapter(weights))
    loras.saved_lora(tmp_path / "x.safetensors", tensors | {FORGED: torch.ones(1)})
    known, _ = found(manifest(tmp_path, "x.safetensors"))

    (note,) = known.notes

    assert note.isprintable()
    assert len(note) < 400
    assert r"\nlora_te_done: 3 of 3 done\x1b[2J" in note


@pytest.mark.parametrize("name", ["", ".dora_scale"])
def test_a_name_in_a_refusal_is_on_one_short_line_too(name: str, tmp_path: Path) -> None:
    file = loras.saved_lora(tmp_path / "x.safetensors", {FORGED + name: torch.ones(1)})

    with pytest.raises(Refused) as caught:
        opened(file)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_named_modules_are_those_that_multiply_by_a_matrix() -> None:
    config = model_options()["tiny_t2v"]
    from diffusers import HunyuanVideo15Transformer3DModel

    with torch.device("meta"):
        model = HunyuanVideo15Transformer3DModel(**transformer_arguments(config))

    table = target_table(transformer_arguments(config))

    named = {target.module for targets in table.values() for target in targets}
    classes = (torch.nn.Linear, torch.nn.Conv3d)
    assert named == {name for name, m in model.named_modules() if isinstance(m, classes)}


def test_a_pair_for_an_embedding_is_left_out_with_a_warning(
    tmp_path: Path, weights: loras.Tensors
) -> None:
    rows, width = weights["cond_type_embed.weight"].shape
    pair = {
        "transformer.cond_type_embed.lora_A.weight": torch.ones(2, width),
        "transformer.cond_type_embed.lora_B.weight": torch.ones(rows, 2),
    }
    tensors = loras.diffusers(loras.adapter(weights)) | pair
    loras.saved_lora(tmp_path / "x.safetensors", tensors)

    known, _ = found(manifest(tmp_path, "x.safetensors"))

    assert known.notes[0].endswith(f"that this model lacks: {', '.join(pair)}")


def test_a_run_renders_rows_by_their_loras_and_logs_them(
    command: Callable[..., Answer], tmp_path: Path, files: dict[str, str]
) -> None:
    path = manifest(
        tmp_path, "", "in/a.safetensors", "none", '"in/my b.safetensors":0.123456789', ""
    )
    typed = "model.loras=[{path:in/a.safetensors,scale:1.0}]"
    plain = tmp_path / "plain.csv"
    plain.write_text("id,prompt\ncat2,a cat\n")
    assert command(plain, *SMALL).code == 0

    answer = command(path, *SMALL, typed, "run_dir=out")

    assert answer.code == 0, answer.err
    assert "LoRA a.safetensors: " in answer.out
    log = pd.read_parquet(tmp_path / "out/log").sort_values("started_at")
    log = log.astype(object).where(log.notna(), None)
    # Clips of one set follow each other; rows that ask for the same clip share it.
    assert list(log["row_id"]) == ["cat0", "cat2", "cat3"]
    a, b = files["a.safetensors"], files["my b.safetensors"]
    by_row = log.set_index("row_id")
    assert by_row["loras"].to_dict() == {
        "cat0": json.dumps([[a, 1.0]]),
        "cat2": None,
        "cat3": json.dumps([[b, 0.123456789]]),
    }
    matched = by_row["lora_keys_matched"]
    assert (matched["cat0"], pd.isna(matched["cat2"])) == (63, True)
    assert by_row["lora_keys_unmatched"]["cat3"] == 0
    before = pd.read_parquet(tmp_path / "outputs/plain/log").iloc[0]
    # After a group with a LoRA, one without renders to the bits of a run without any.
    assert by_row["latents_sha256"]["cat2"] == before["latents_sha256"]
    assert by_row["settings_sha256"]["cat2"] == before["settings_sha256"]
    assert by_row["latents_sha256"].nunique() == 3

    # Which file a LoRA is, a video's tag does not decide.
    told = command("recipe", tmp_path / "out" / by_row["file"]["cat3"])
    assert f"LoRA: it was rendered with SHA-256 {b} at scale 0.123456789; a tag never" in told.out
    assert "add 'model.loras=[{path:FILE,scale:0.123456789}]'" in told.out

    refused = command("resume=out")
    assert "model.loras" in refused.err
    again = command("resume=out", typed)
    assert (again.code, "3 of 3 done" in again.out) == (0, True), again.err + again.out
    other = command(path, *SMALL, "model.loras=[{path:in/a.safetensors,scale:0.9}]", "run_dir=out")
    assert other.code == 2
    assert "loras" in other.err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a.safetensors:0.5", r"a\.safetensors, scale: 0\.5\}\]'"),
        ("a.safetensors:-1", r"a\.safetensors, scale: -1\}\]'"),
    ],
)
def test_a_scale_behind_a_typed_path_is_refused_with_the_right_form(
    path: str, said: str, tmp_path: Path
) -> None:
    option = replace(model_options()["tiny_t2v"], loras=[Lora(path)])
    rows = read_manifest(manifest(tmp_path, ""), Task.t2v)
    checkpoint = resolve_checkpoint(option)

    with pytest.raises(Refused, match=f"the scale of a setting stands apart: .*{said}"):
        find_loras(Config(model=option), rows, {option.name: checkpoint})
