"""`python -m hv15_batch` does the same as `hv15-batch`."""

from hv15_batch.cli import entry

if __name__ == "__main__":
    entry()
