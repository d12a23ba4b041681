"""Puts trained weights into the package, parts that are never read left out.

    python -m training.export FOLDER

FOLDER holds `transformer.safetensors` of a sitting. `hv15_batch.engine.load.demo` fills the parts
that are left out when it writes an ordinary checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hv15_batch.model.architectures import DEMO_FOLDER

PARTS = ("text_encoder", "text_encoder_2", "image_encoder", "transformer")
ROWS = {"text_encoder": ("embed_tokens.weight", 264), "text_encoder_2": ("shared.weight", 384)}
"""Embeddings of bytes and how many there are."""


def pack(
    state: dict[str, torch.Tensor], used: dict[str, list[int]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of each part, embeddings cut to the rows that training used.

    Args:
        state: of `training.models.Models`.
        used: rows of the embeddings that occur in prompts, by part.
    """
    packed: dict[str, dict[str, torch.Tensor]] = {}
    for part in PARTS:
        weights = {
            k.removeprefix(part + "."): v for k, v in state.items() if k.startswith(part + ".")
        }
        if part in ROWS:
            name, _ = ROWS[part]
            rows = torch.tensor(used[part])
            weights[name] = weights[name][rows].contiguous()
            weights[name + ".rows"] = rows.to(torch.int16)
        weights.pop("encoder.embed_tokens.weight", None)  # the same tensor under another name
        packed[part] = weights
    return packed


def load_packaged(models: nn.Module) -> None:
    """Take over the weights of the package, to train on from them.

    Args:
        models: `training.models.Models`; its probe and the rows left out stay as they are.
    """
    state = models.state_dict()
    for part in PARTS:
        packed = load_file(DEMO_FOLDER / f"{part}.safetensors")
        for key, value in packed.items():
            if not key.endswith(".rows"):
                rows = packed.get(key + ".rows")
                into = state[f"{part}.{key}"]
                into[slice(None) if rows is None else rows.long()] = value.float()
    state["text_encoder_2.encoder.embed_tokens.weight"] = state["text_encoder_2.shared.weight"]
    models.load_state_dict(state)


def used_rows() -> dict[str, list[int]]:
    """Return the tokens of which prompts of printable ASCII are made."""
    from training.text import Tokens

    tokens = Tokens()
    text = {i for ids in tokens.ids for i in ids} | {*tokens.prefix, *tokens.suffix, 0}
    glyphs = {i for ids in tokens.glyph_ids for i in ids} | {*tokens.glyph_end, 0}
    return {"text_encoder": sorted(text), "text_encoder_2": sorted(glyphs)}


def main() -> None:
    """Read the folder and write the package's files."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    folder = arguments.parse_args().folder
    trained = load_file(folder / "transformer.safetensors")
    state = {k: v.to(torch.bfloat16) for k, v in trained.items()}
    for part, weights in pack(state, used_rows()).items():
        save_file(weights, DEMO_FOLDER / f"{part}.safetensors")
    files = sorted(DEMO_FOLDER.glob("*.safetensors"))
    for file in files:
        print(f"{file.name}: {file.stat().st_size} bytes")
    print(f"all: {sum(f.stat().st_size for f in files)} bytes")


if __name__ == "__main__":
    main()
