"""docs/attention.md shows the kernels and cards of the code."""

from __future__ import annotations

import re
from pathlib import Path

from hv15_batch.engine.denoise.attention_check import MAX_RELATIVE_ERRORS
from hv15_batch.model.attention import KERNELS, Kernel, auto_kernels

PAGE = (Path(__file__).parents[2] / "docs" / "attention.md").read_text(encoding="utf-8")


def row(kernel: Kernel) -> str:
    package = f"{kernel.package}" if kernel.package else "torch's own"
    cards = str(kernel.cards) if kernel.cards else "all"
    mask = "yes" if kernel.takes_mask else ""
    cells = (f"`{kernel.name}`", str(kernel.bits), cards, package, mask)
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def test_each_kernel_has_its_line_and_there_is_no_other() -> None:
    table = PAGE.split("<!-- kernels: ")[1].split("<!-- end of kernels -->")[0]

    assert [line for line in table.splitlines() if line.startswith("| `")] == [
        row(kernel) for kernel in KERNELS.values()
    ]


def test_what_auto_takes_is_what_the_page_says() -> None:
    lines = dict(re.findall(r"^\| (\S+|\S+ and \S+) \| [^|]+ \| ([^|]+) \|$", PAGE, re.M))
    for text, majors in {"9.x": [9], "10.x and 11.x": [10, 11], "12.x": [12], "8.x": [8]}.items():
        for major in majors:
            named = tuple(re.findall(r"`(\w+)`", lines[text]))
            assert named == auto_kernels((major, 0))
    assert auto_kernels((7, 5)) == ("native",)


def test_the_limits_are_those_of_the_check() -> None:
    found = re.findall(r"^\| (\d+) \| (\d+) % \|", PAGE, re.M)

    assert {int(bits): int(percent) / 100 for bits, percent in found} == MAX_RELATIVE_ERRORS


def test_the_install_extra_is_the_package_that_the_kernel_needs() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    package = KERNELS["comfy_int8"].package

    assert package is not None
    assert f'int8-attention = ["{package.name}>={package.minimum}"]' in project
