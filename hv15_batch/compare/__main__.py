"""`python -m hv15_batch.compare` is `hv15-batch compare`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["compare"]
    runpy.run_module("hv15_batch", run_name="__main__")
