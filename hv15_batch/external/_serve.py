"""Takes rows for Tencent's generate.py as JSON lines, in one process that loads the model once.

It runs in the environment of that repository, which need not have hv15_batch: nothing but Python's
own library is imported here, and the repository. `_serve.py FD SCRIPT`; a line of standard input is
`{"arguments": [...]}`, the flags of a row, and each is answered on descriptor FD: `{"taken": true}`
when it begins, and `{"code": 0}`, the exit code that the script would have had. What the script
prints is its own.

Source of all names: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 generate.py.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import inspect
import json
import os
import re
import runpy
import socket
import sys
import traceback
import warnings
from typing import Any

_PIPELINE = "HunyuanVideo_1_5_Pipeline"
_OF_ROWS = {
    *("prompt", "negative_prompt", "seed", "output_path", "image_path", "aspect_ratio"),
    *("video_length", "num_inference_steps"),
}
"""Flags that a loaded model does not depend on."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def main(argv: list[str]) -> int:
    """Serve rows until standard input ends."""
    results = os.fdopen(int(argv[0]), "w", encoding="utf-8")
    script = argv[1]
    sys.path[0] = os.path.dirname(script)
    rows = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # the rows are not the script's to read
    set_up_distributed()
    run = None
    for line in rows:
        sys.argv = [script, *json.loads(line)["arguments"]]
        print(json.dumps({"taken": True}), file=results, flush=True)
        code = 0
        # Each row is warned anew: Python tells a warning once for each place, until this is left.
        with warnings.catch_warnings():
            try:
                run = run or load(script)
                code = exit_code(SystemExit(run()))
            except SystemExit as error:
                code = exit_code(error)
            except BaseException:
                traceback.print_exc()
                code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        print(json.dumps({"code": code}), file=results, flush=True)
    return 0


def set_up_distributed() -> None:
    """Set what torchrun would set for one process, whatever was set; the script needs it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        os.environ[name] = "0"
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = "1"
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(port)


def load(script: str) -> Any:
    """Return what renders the row in `sys.argv`: the script's `main`, with its model kept."""
    spec = importlib.util.spec_from_file_location("generate", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    pipeline = getattr(module, _PIPELINE, None)
    if pipeline is not None:
        keep_pipeline(pipeline)
    distributed: Any = getattr(module, "dist", None)
    if hasattr(distributed, "destroy_process_group"):
        distributed.destroy_process_group = lambda *_, **__: None  # `main` ends with it
    if callable(getattr(module, "main", None)):
        render = module.main
        if needs_argument(render):
            return lambda: render(sys.argv[1:])
        return render

    def render_all() -> None:
        runpy.run_path(script, run_name="__main__")  # its value is the module's names

    return render_all


def needs_argument(function: Any) -> bool:
    """Whether a function cannot be called without an argument."""
    return any(
        each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        for each in inspect.signature(function).parameters.values()
    )


def key_of(value: Any) -> str:
    """Return what tells a pipeline's arguments apart, without what differs by row."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        kept = sorted((str(name), key_of(each)) for name, each in value.items())
        return repr([pair for pair in kept if pair[0] not in _OF_ROWS])
    if isinstance(value, list | tuple):
        return repr([key_of(each) for each in value])
    return _ADDRESS.sub("", repr(value))


def keep_pipeline(pipeline: Any) -> None:
    """Make a pipeline's class give the same object again for the same arguments.

    Offloading and 8-bit layers are set up once for it: a second time would wrap them twice.
    """
    create: Any = pipeline.create_pipeline
    optimise: Any = getattr(pipeline, "apply_infer_optimization", None)
    kept: dict[str, Any] = {}
    optimised: set[int] = set()

    def create_once(*args: Any, **options: Any) -> Any:
        key = key_of((args, options))
        if key not in kept:
            kept.clear()  # another checkpoint: both would not fit
            optimised.clear()
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()
            kept[key] = create(*args, **options)
        return kept[key]

    def optimise_once(self: Any, *args: Any, **options: Any) -> Any:
        if id(self) not in optimised:
            optimised.add(id(self))
            return optimise(self, *args, **options)
        return None

    pipeline.create_pipeline = staticmethod(create_once)
    if optimise is not None:
        pipeline.apply_infer_optimization = optimise_once


def exit_code(error: SystemExit) -> int:
    """Return the exit code that Python gives a `SystemExit`."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
