"""The cards that predictions know: vendor figures, with their sources.

Rates are dense (no sparsity) bf16 with fp32 accumulation, which on GeForce cards is half of the
fp16-accumulate figure that is often quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Vendor figures of a card."""

    name: str
    """Name for `runtime.card`."""
    pattern: str
    """Regular expression over NVML's product name."""
    memory_gib: float
    """As the driver reports it, GiB."""
    dense_bf16_tflops: float
    """Tensor-core rate, bf16 with fp32 accumulation."""
    bandwidth_gb_per_second: float
    """Memory bandwidth, 10^9 bytes."""
    host_gb_per_second: float
    """Practical copy rate from pinned host memory: PCIe 4.0 x16 about 25, x8 12, 5.0 x16 50."""
    source: str


_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper v2.1, appendix A"
_ADA = "NVIDIA Ada GPU Architecture whitepaper v2.1, appendix A"
_DERIVED = "NVIDIA product page; tensor rate 2 x fp32 rate as in the family's whitepaper"

CARDS = (
    Card("rtx_3060", r"RTX 3060(?! Ti)", 12.0, 25.5, 360, 25, _DERIVED),
    Card("rtx_3090", r"RTX 3090(?! Ti)", 24.0, 71.2, 936, 25, _GA102),
    Card("rtx_4060_ti", r"RTX 4060 Ti", 16.0, 44.1, 288, 12, _DERIVED),
    Card("rtx_4070_ti", r"RTX 4070 Ti(?! SUPER)", 12.0, 80.2, 504, 25, _DERIVED),
    Card("rtx_4080", r"RTX 4080(?! SUPER)", 16.0, 97.5, 717, 25, _ADA),
    Card("rtx_4090", r"RTX 4090(?! ?D)", 24.0, 165.2, 1008, 25, _ADA),
    Card(
        "rtx_5090",
        r"RTX 5090(?! ?D)",
        31.8,
        209.5,
        1792,
        50,
        "NVIDIA RTX Blackwell GPU Architecture whitepaper v1.1, appendix A",
    ),
    Card(
        "rtx_5090_d",
        r"RTX 5090 ?D(?!.*v2)",
        31.8,
        148.4,
        1792,
        50,
        "third-party reports: 2375 of the RTX 5090's 3352 AI TOPS, else equal; rate scaled by that",
    ),
    Card("a100", r"A100.*80GB", 80.0, 312.0, 2039, 25, "NVIDIA A100 80GB datasheet (SXM)"),
    Card("l40s", r"L40S", 45.0, 362.0, 864, 25, "NVIDIA L40S datasheet"),
    Card(
        "h100", r"\b(H100 80GB HBM3|H100 SXM)", 80.0, 989.4, 3352, 50, "NVIDIA H100 datasheet (SXM)"
    ),
    Card("h200", r"\bH200(?! NVL)", 140.4, 989.4, 4800, 50, "NVIDIA H200 datasheet (SXM)"),
)


_NOT_THE_CARD = re.compile(r"Laptop|Max-Q|\bMIG\b")
"""In a product name: another chip under the same name, or a slice of the card."""


def find_card(name: str) -> Card | None:
    """Return the card of a `runtime.card` name or of NVML's product name, or None."""
    if _NOT_THE_CARD.search(name):
        return None
    for card in CARDS:
        if name == card.name or re.search(card.pattern, name):
            return card
    return None


def card_names() -> list[str]:
    """Return the names that `runtime.card` takes."""
    return [card.name for card in CARDS]
