"""Pages of run directories: `index.html`, with its assets and the clips beside it.

Reads run directories, never a model. `read` takes in what lies there, `view` decides what is
shown, `render` writes it; `comparison` does the same for several runs.
"""

from __future__ import annotations

from hv15_batch.report.command import main
from hv15_batch.report.live import live_page
from hv15_batch.report.render import write_page

__all__ = ["live_page", "main", "write_page"]
