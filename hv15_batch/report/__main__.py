"""`python -m hv15_batch.report` is `hv15-batch report`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["report"]
    runpy.run_module("hv15_batch", run_name="__main__")
