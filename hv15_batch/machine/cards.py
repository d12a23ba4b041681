"""The cards that predictions know: vendor figures, with their sources.

Rates are dense (no sparsity) bf16 with fp32 accumulation. On GeForce cards that is half of the rate
with fp16 accumulation, which is often quoted. There fp8 with fp32 accumulation has twice the rate
of bf16, and int8 four times; on cards for servers both have twice (the same sources).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from hv15_batch.errors import Refused
from hv15_batch.units import GIB


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
    fp32_tflops: float
    """Rate of the ordinary cores."""
    fp8_tflops: float | None
    """Dense tensor-core rate, fp8 with fp32 accumulation; None where there is none."""
    int8_tops: float
    """Dense tensor-core rate, int8."""
    bandwidth_gb_per_second: float
    """Memory bandwidth, 10^9 bytes."""
    host_gb_per_second: float
    """Practical copy rate from pinned host memory: PCIe 4.0 x16 about 25, x8 12, 5.0 x16 50."""
    capability: tuple[int, int]
    """CUDA compute capability; decides which attention kernel `auto` takes."""
    source: str
    """Page of the figures, and how others were derived from them."""

    @property
    def is_hopper(self) -> bool:
        """Whether it is a Hopper card, on which kernels of older generations are slow."""
        return self.capability[0] == 9

    @property
    def has_display(self) -> bool:
        """Whether a desktop probably uses some of its memory."""
        return self.name.startswith("rtx_")


_GA102 = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
    " appendix A"
)
_ADA = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf "
    "appendix A"
)
_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf appendix A"
)
_SERIES_30 = (
    "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/ "
    "cores and clock; tensor rate 2 x fp32 rate as in the GA102 whitepaper"
)
_SERIES_40 = (
    "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/{}/ "
    "cores and clock; tensor rate 2 x fp32 rate as in the Ada whitepaper"
)
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf 80GB SXM"
)
_L40S = "https://www.nvidia.com/en-us/data-center/l40s/"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/ SXM; half of the rate with sparsity"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/ SXM; half of the rate with sparsity"
_D_SCALED = "; third-party reports: 2375 of its 3352 AI TOPS, else equal; tensor rate by that"
_4060, _4070 = _SERIES_40.format("rtx-4060-4060ti"), _SERIES_40.format("rtx-4070-family")

# fmt: off
CARDS = (
    #    name, pattern, GiB, bf16, fp32, fp8 and int8 TFLOP/s, GB/s, host GB/s, capability, source
    Card("rtx_3060", r"RTX 3060(?! Ti)", 12.0, 25.5, 12.7, None, 102, 360, 25, (8, 6), _SERIES_30),
    Card("rtx_3090", r"RTX 3090(?! Ti)", 24.0, 71.2, 35.6, None, 284.8, 936, 25, (8, 6), _GA102),
    Card("rtx_4060_ti", r"RTX 4060 Ti", 16.0, 44.1, 22.1, 88.2, 176.4, 288, 12, (8, 9), _4060),
    Card("rtx_4070_ti", r"RTX 4070 Ti(?! SUPER)", 12.0, 80.2, 40.1, 160.4, 320.8, 504, 25, (8, 9),
         _4070),
    Card("rtx_4080", r"RTX 4080(?! SUPER)", 16.0, 97.5, 48.7, 195, 390, 717, 25, (8, 9), _ADA),
    Card("rtx_4090", r"RTX 4090(?! ?D)", 24.0, 165.2, 82.6, 330.3, 660.6, 1008, 25, (8, 9), _ADA),
    Card("rtx_5090", r"RTX 5090(?! ?D)", 31.8, 209.5, 104.8, 419, 838, 1792, 50, (12, 0),
         _BLACKWELL),
    Card("rtx_5090_d", r"RTX 5090 ?D(?!.*v2)", 31.8, 148.4, 104.8, 296.8, 593.6, 1792, 50, (12, 0),
         _BLACKWELL + _D_SCALED),
    Card("a100", r"A100.*80GB", 80.0, 312.0, 19.5, None, 624, 2039, 25, (8, 0), _A100),
    Card("l40s", r"L40S", 45.0, 362.0, 91.6, 733, 733, 864, 25, (8, 9), _L40S),
    Card("h100", r"\b(H100 80GB HBM3|H100 SXM)", 79.6, 989.4, 66.9, 1978.9, 1978.9, 3352, 50,
         (9, 0), _H100),
    Card("h200", r"\bH200(?! NVL)", 140.4, 989.4, 66.9, 1978.9, 1978.9, 4800, 50, (9, 0), _H200),
)
# fmt: on
EXAMPLE = "rtx_4090"
"""The card that messages name as an example."""


_NOT_THE_CARD = re.compile(r"Laptop|Max-Q|\bMIG\b")
"""Parts of a product name that mean another chip of that name, or a slice of the card."""


def find_card(name: str) -> Card | None:
    """Return the card of a `runtime.card` name or of NVML's product name, or None."""
    if _NOT_THE_CARD.search(name):
        return None
    for card in CARDS:
        if name == card.name or re.search(card.pattern, name):
            return card
    return None


def typed_card(text: str) -> Card:
    """Return the card of a typed `runtime.card`: its name, or a short form that means one card.

    `4090`, `rtx4090` and `RTX 4090` are rtx_4090.

    Raises:
        Refused: there is no such card; the message has near names.
    """
    if (card := find_card(text)) is not None:
        return card
    by_form = {_plain(card.name): card for card in CARDS}
    by_form |= {form.removeprefix("rtx"): card for form, card in by_form.items()}
    short = _plain(text)
    if not _NOT_THE_CARD.search(text) and short in by_form:
        return by_form[short]
    near = difflib.get_close_matches(short, by_form, n=3, cutoff=0.5)
    names = dict.fromkeys(by_form[form].name for form in near)
    hint = f" Did you mean {' or '.join(names)}?" if names else ""
    raise Refused(f"runtime.card={text}: known cards are {', '.join(card_names())}.{hint}")


def _plain(text: str) -> str:
    """Return a name without case, makers and punctuation."""
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", text.lower())


def card_names() -> list[str]:
    """Return the names that `runtime.card` takes."""
    return [card.name for card in CARDS]


CONTEXT_BYTES = int(1.4 * GIB)
"""CUDA context, driver, cuDNN's and Triton's kernels, which torch's counters do not include. NVML's
peak was 1.28 to 1.39 GiB over torch's reserved one (H200, driver 580, measured 2026-11-22)."""
ALLOCATOR_BYTES = int(0.3 * GIB)
"""What torch's allocator may hold beyond what is in use, with expandable segments."""
