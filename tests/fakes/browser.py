"""A page of the disk in real headless Chromium: what it complained about, what it asked for.

Chromium is Debian's (`apt-get install chromium`); without one the tests that use it are skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here (apt-get install it)"
)

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass
class Opened:
    """A page in the browser, with all that it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    origin: str = ""
    """Of the server that the page comes from; empty for one of the disk."""

    def cards(self) -> list[str]:
        """Return the clips shown, in their order."""
        ids: list[str] = self.page.eval_on_selector_all("#gallery .card", "c => c.map(e => e.id)")
        return [name.removeprefix("clip-") for name in ids]

    def foreign(self) -> list[str]:
        """Return what was asked for outside the disk and the page itself."""
        own = ("data:", "blob:", f"{self.origin}/" if self.origin else "file:")
        return [url for url in self.requests if not url.startswith(own)]


@contextmanager
def browsing(
    driver: Any, page: Path | str, profile: Path, *, width: int = 1280, scheme: str = "light"
) -> Iterator[Opened]:
    """Open a page of the disk, or an address, in a new browser with an empty profile."""
    context = driver.chromium.launch_persistent_context(
        profile, executable_path=CHROMIUM, args=list(FLAGS), color_scheme=scheme,
        viewport={"width": width, "height": 900}, accept_downloads=True,
    )  # fmt: skip
    try:
        opened = Opened(context.new_page())
        opened.page.on("console", lambda m: _note(opened, m) if m.type != "log" else None)
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
        context.on("request", lambda request: opened.requests.append(request.url))
        if isinstance(page, str):
            opened.origin = page.partition("/?")[0]
        opened.page.goto(page if isinstance(page, str) else page.as_uri())
        yield opened
    finally:
        context.close()


def _note(opened: Opened, message: Any) -> None:
    opened.complaints.append(f"{message.type}: {message.text}")


def wait(page: Any, condition: str) -> None:
    """Wait for a condition; `wait_for_function` would need the eval that the page forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        page.wait_for_timeout(50)


def faults(page: Any) -> list[str]:
    """Return axe's serious and critical findings."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # It would ask for style sheets of its own accord, which the page forbids.
    found = axe.run(page, options={"preload": False}).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
