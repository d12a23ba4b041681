"""`python -m hv15_batch.report RUN_DIR ...`."""

from __future__ import annotations

import sys

from hv15_batch.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
