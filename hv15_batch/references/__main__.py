"""`python -m hv15_batch.references` is `hv15-batch references`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["references"]
    runpy.run_module("hv15_batch", run_name="__main__")
