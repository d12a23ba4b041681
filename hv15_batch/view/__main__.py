"""`python -m hv15_batch.view` is `hv15-batch view`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["view"]
    runpy.run_module("hv15_batch", run_name="__main__")
