"""`python -m hv15_batch.status` is `hv15-batch status`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["status"]
    runpy.run_module("hv15_batch", run_name="__main__")
