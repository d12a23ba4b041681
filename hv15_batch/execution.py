"""How a card carries out the maths, and how fast attention is then. Arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from hv15_batch.cards import Card

_CUDNN, _FLASH, _NATIVE = "_native_cudnn", "_native_flash", "native"
ATTENTION_SHARES = {_CUDNN: (0.62, 0.62), _FLASH: (0.38, 0.62)}
"""Share of the dense bf16 rate that attention reaches: on Hopper, elsewhere. cuDNN 566 TFLOP/s and
FlashAttention-2 361 on one H200; elsewhere assumed."""
MASKED_SHARES = (0.156, 0.28)
"""The same with the stock mask, which only torch's memory-efficient kernel takes, the mask's making
included: 8.71 s a forward of 480x848x121 on one H200; elsewhere by the RTX 5090 D that took 509 s
with the mask and 272 s without (conf/reference/profile_rtx5090d.yaml)."""
FLOAT32_ATTENTION_SHARE = 0.4
"""Of the fp32 rate; assumed."""


@dataclass(frozen=True)
class Execution:
    """How the maths is carried out: what changes time and memory for one and the same clip."""

    attention_backend: str
    """In effect: never `auto`."""
    offload: str = "resident"
    compiled: bool = False
    mask_free: bool = True
    dtype: str = "bfloat16"

    @property
    def bytes_factor(self) -> int:
        """Bytes of a number over those of a 16-bit one."""
        return 2 if self.dtype == "float32" else 1

    @property
    def is_streamed(self) -> bool:
        """Whether the weights pass through the card in each forward."""
        return self.offload in ("stream", "stream_disk")


def auto_backend(card: Card, mask_free: bool, dtype: str) -> str:
    """Return the attention that `auto` means on a card; the rule is that of `attention`."""
    if not mask_free or dtype == "float32" or card.capability < (8, 0):
        return _NATIVE
    return _CUDNN if card.capability >= (9, 0) else _FLASH


def default_execution(card: Card) -> Execution:
    """Return how a card runs by default: resident, mask-free bf16, not compiled."""
    return Execution(auto_backend(card, True, "bfloat16"))


def not_modelled(card: Card, execution: Execution) -> str | None:
    """Return the settings whose speed is not known, and what is taken instead; None without."""
    name = auto_backend(card, execution.mask_free, execution.dtype)
    parts = []
    if execution.attention_backend not in (name, *_known_kernels(execution)):
        parts.append(f"attention_backend={execution.attention_backend}, taken as {name}")
    if execution.dtype == "float32":
        parts.append("dtype=float32, never measured")
    return "; ".join(parts) or None


def attention_share(card: Card, execution: Execution) -> float:
    """Return the share of the card's rate (fp32 or bf16) that attention reaches."""
    if execution.dtype == "float32":
        return FLOAT32_ATTENTION_SHARE
    if not execution.mask_free:
        shares = MASKED_SHARES
    else:
        auto = ATTENTION_SHARES[auto_backend(card, True, execution.dtype)]
        shares = ATTENTION_SHARES.get(execution.attention_backend, auto)
    return shares[0 if card.is_hopper else 1]


def _known_kernels(execution: Execution) -> tuple[str, ...]:
    """Return the attention kernels that have figures for this type, with or without a mask."""
    is_fused = execution.mask_free and execution.dtype != "float32"
    return tuple(ATTENTION_SHARES) if is_fused else (_NATIVE,)
