"""Every component with seeded random weights, built where it will live, without a download.

Time and memory of a render do not depend on the values, so these stand in for the real weights.
Never holds a second copy of a component, nor a float32 one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Transformer3DModel,
)
from tokenizers import AddedToken, pre_tokenizers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from hv15_batch.engine.load.linears import EightBits
from hv15_batch.model.architectures import (
    SEED,
    Architecture,
    component_arguments,
    read_architecture,
)
from hv15_batch.model.variant import ModelConfig

_BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "transformer": lambda arguments: HunyuanVideo15Transformer3DModel(**arguments),
    "vae": lambda arguments: AutoencoderKLHunyuanVideo15(**arguments),
    "text_encoder": lambda arguments: Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**arguments)),
    "text_encoder_2": lambda arguments: T5EncoderModel(T5Config(**arguments)),
    "image_encoder": lambda arguments: SiglipVisionModel(SiglipVisionConfig(**arguments)),
}

POOL_SIZE = 4_194_301
"""Normal values that all weights of a component are cut from: a prime, so that the rows of a
matrix larger than the pool still differ."""

PROMPT_START = 108
"""Tokens before the prompt, which the pipelines crop.

Source: diffusers 0.42.1 `prompt_template_encode_start_idx`, the length of the real system message
and user header in Qwen tokens.
"""
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
# A byte-level tokenizer would need several hundred tokens for the system message. It says the
# same for every prompt, so any fixed sequence can stand for it: here as many `<|system|>` as fill
# the prefix up to the prompt's first byte.
_HEADER = ("<|im_start|>", "<|im_end|>", "<|im_start|>", "<|user|>")
_NUM_SYSTEM_TOKENS = PROMPT_START - len(_HEADER)
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' -}}"
    "{%- if message['role'] == 'system' -%}"
    "{{- '<|system|>' * " + str(_NUM_SYSTEM_TOKENS) + " -}}"
    "{%- else -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- endif -%}"
    "{{- '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|><|assistant|>' -}}{%- endif -%}"
)


def build_component(
    name: str,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int = SEED,
    architecture: Architecture | None = None,
    eight_bits: EightBits | None = None,
) -> nn.Module:
    """Return one component with random weights, in evaluation mode, without gradients.

    Norm weights are 1, biases 0, all other weights normal with variance 1 / fan-in, which keeps
    activations near 1 at every depth (0.022 for the transformer's 2048 channels). The same seed
    gives the same weights on every device, so offload profiles can be compared.

    Args:
        name: `transformer`, `vae`, `text_encoder`, `text_encoder_2` or `image_encoder`.
        model: decides the transformer's task, bucket size and MeanFlow.
        dtype: type of the parameters; buffers keep their own, as they do in `from_pretrained`.
        device: where each parameter is allocated, one after the other.
        seed: seed of the weights.
        architecture: component configurations; null means the full-size ones.
        eight_bits: how the weights of a transformer are quantised, each when it is made.

    Raises:
        ValueError: if there is no such component.
    """
    if name not in _BUILDERS:
        raise ValueError(f"component {name!r}: must be one of {', '.join(_BUILDERS)}")
    arguments = component_arguments(name, model, architecture or read_architecture("full"))
    component = build_without_memory(name, arguments)
    if eight_bits is not None:
        eight_bits.change(component)
    noise = _Noise(f"{seed}:{name}", device)
    _materialise(component, dtype, torch.device(device), noise, eight_bits)
    return component.eval()


def build_without_memory(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return one component whose large parameters are on `meta` and whose buffers are real."""
    with ParametersOnMeta():
        return _BUILDERS[name](arguments)


def build_scheduler(
    model: ModelConfig, architecture: Architecture | None = None
) -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of an architecture, full-size unless given."""
    arguments = component_arguments("scheduler", model, architecture or read_architecture("full"))
    return FlowMatchEulerDiscreteScheduler(**arguments)


def build_guider(
    model: ModelConfig, architecture: Architecture | None = None
) -> ClassifierFreeGuidance:
    """Return the guider of an architecture, full-size unless given."""
    arguments = component_arguments("guider", model, architecture or read_architecture("full"))
    return ClassifierFreeGuidance(**arguments)


def build_feature_extractor(
    model: ModelConfig, architecture: Architecture | None = None
) -> SiglipImageProcessorPil:
    """Return the image processor of an architecture, full-size unless given.

    Always the Pillow one: its pixels do not depend on whether torchvision is installed.
    """
    name = "feature_extractor"
    arguments = component_arguments(name, model, architecture or read_architecture("full"))
    return SiglipImageProcessorPil(**arguments)


def tokenizers() -> tuple[Qwen2Tokenizer, ByT5Tokenizer]:
    """Return byte-level tokenizers for prompts and for glyph texts, built in code.

    A prompt's byte is one token, and its first byte is token `PROMPT_START` of the chat template,
    where plain diffusers crops.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*alphabet, *_SPECIAL_TOKENS))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], padding_side="right", chat_template=_CHAT_TEMPLATE
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
    )
    return tokenizer, ByT5Tokenizer()


class ParametersOnMeta(TorchFunctionMode):
    """Sends uninitialised tensors to `meta`.

    Large parameters begin as `torch.empty`, while buffers that no checkpoint holds (rotary
    frequencies, position ids) are computed: those stay real, which `torch.device("meta")` would
    not leave them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


class _Noise:
    """Normal values cut from one pool, for the speed of a copy.

    Drawing 8.33 B values takes a CPU over a minute; copying them takes seconds.
    """

    def __init__(self, key: str, device: torch.device | str) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        self._pool = torch.randn(POOL_SIZE, generator=self._generator).to(device)
        self._scaled: dict[tuple[float, torch.dtype], torch.Tensor] = {}

    def fill_(self, values: torch.Tensor, std: float) -> None:
        """Fill a contiguous tensor with normal values of this standard deviation."""
        key = (std, values.dtype)
        if key not in self._scaled:
            self._scaled[key] = (self._pool * std).to(values.dtype)
        source, flat = self._scaled[key], values.view(-1)
        start = int(torch.randint(POOL_SIZE, (), generator=self._generator))
        filled = 0
        while filled < flat.numel():
            piece = source[start : start + flat.numel() - filled]
            flat[filled : filled + piece.numel()] = piece
            filled, start = filled + piece.numel(), 0


def _materialise(
    component: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    noise: _Noise,
    eight_bits: EightBits | None,
) -> None:
    # Keyed by the old parameter, so that tied weights stay tied.
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in component.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in replaced:
                values = torch.empty(parameter.shape, dtype=dtype, device=device)
                _fill(name, values, noise)
                if eight_bits is not None and eight_bits.take(module, name, values, device):
                    continue
                replaced[parameter] = nn.Parameter(values, requires_grad=False)
            setattr(module, name, replaced[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def _fill(name: str, values: torch.Tensor, noise: _Noise) -> None:
    if name.endswith("bias"):
        values.zero_()
    elif name == "gamma" or values.ndim <= 1:
        values.fill_(1.0)
    else:
        noise.fill_(values, 1 / math.sqrt(values[0].numel()))
