"""A run as a process of its own: `python -m fakes.run_parent FOLDER [SHARD]`, over its manifest."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from fakes.runs import Project, fake_local_executor
from hv15_batch.errors import Refused
from hv15_batch.run import session

if __name__ == "__main__":
    project = Project(Path(sys.argv[1]))
    config = project.config(shard=sys.argv[2] if len(sys.argv) > 2 else None)
    try:
        code = session.run(config, (), None, partial(print, flush=True), fake_local_executor)
    except Refused as error:
        print(error, file=sys.stderr)
        code = 2
    sys.exit(code)
