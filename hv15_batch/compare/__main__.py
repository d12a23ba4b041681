"""`python -m hv15_batch.compare RUN_A RUN_B`."""

from __future__ import annotations

import sys

from hv15_batch.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
