"""What every sitting of training shares: cards, clock, rate and checkpoints.

A plan of `--total` seconds is trained in sittings of `--seconds`. A sitting goes on from the
weights of the one before, with a new optimiser that warms up again; `--state` keeps the optimiser
too, for sittings on one machine.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.optimizers import Optimizer
from training.states import (
    Average,
    load_module,
    read_record,
    save_average,
    save_module,
    write_record,
)

WARM_UP_STEPS = 200


class Sitting:
    """One sitting: a subclass trains a module and measures it."""

    name: str
    """Of the files that the weights go into."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        module: nn.Module,
        is_matrix: Callable[[str, nn.Parameter], bool],
    ) -> None:
        """Choose the card, load what a sitting before left, and make the optimiser.

        Args:
            arguments: of `parser`.
            module: what is trained.
            is_matrix: which parameters Muon takes.
        """
        self.arguments, self.module = arguments, module
        self.rank = int(os.environ.get("RANK", "0"))
        self.cards = int(os.environ.get("WORLD_SIZE", "1"))
        is_cuda = torch.cuda.is_available()
        self.device = torch.device("cpu")
        self.dtype = torch.bfloat16 if is_cuda else torch.float32
        if is_cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        if self.cards > 1:
            dist.init_process_group("nccl" if is_cuda else "gloo")
        self.seconds, self.steps = 0.0, 0
        if arguments.resume:
            load_module(module, arguments.resume, self.name)
            record = read_record(arguments.resume, self.name)
            self.seconds, self.steps = record["seconds"], record["steps"]
        module.to(self.device)
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.optimizer = Optimizer(named, is_matrix)
        self.average = Average(self.optimizer.parameters)
        self.steps_before = self.steps
        if arguments.state and arguments.state.exists():
            self._load_state(arguments.state)

    def train(self) -> None:
        """Train for the sitting's seconds."""
        arguments, every = self.arguments, 1 if self.arguments.small else 10
        self.say(f"{arguments}")
        begun = self.now()
        self.prepare()
        memory = torch.cuda.max_memory_reserved() / 2**30 if self.device.type == "cuda" else 0
        self.say(f"ready after {self.now() - begun:.0f} s, {memory:.1f} GiB")
        before, start = self.seconds, self.now()
        reported = saved = start
        while True:
            self.step()
            self.steps += 1
            if self.steps % 10 == 0:
                self.average.update()
            if self.steps % every:
                continue
            now = self.now()
            clock = self.agreed([now - start, now - reported, now - saved])
            self.seconds = before + clock[0]
            is_over = clock[0] >= arguments.seconds or self.seconds >= arguments.total
            if is_over or clock[1] >= arguments.report:
                reported = now
                norm = self.optimizer.norm.item()
                self.say(
                    f"{self.seconds:.0f} s step {self.steps} {self.figures()} norm {norm:.2f} "
                    f"rate {self.rate():.2e}"
                )
            if is_over or clock[2] >= arguments.save:
                saved = now
                self._save()
            if is_over:
                break
        if self.rank == 0:
            self.finish()
        if self.cards > 1:
            dist.barrier()
            dist.destroy_process_group()

    def prepare(self) -> None:
        """Get everything ready that must not count as training."""
        raise NotImplementedError

    def step(self) -> None:
        """Do one step."""
        raise NotImplementedError

    def figures(self) -> str:
        """Return how the last steps went."""
        raise NotImplementedError

    def measure(self) -> dict[str, float]:
        """Measure the averaged weights, which are in place; on the first card alone."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what is left to do at the end, on the first card alone."""

    def rate(self) -> float:
        """Return the rate of this step: warmed up, then falling as a cosine over the plan."""
        share = min(1.0, self.seconds / self.arguments.total)
        warm = min(1.0, (self.steps - self.steps_before + 1) / WARM_UP_STEPS)
        return float(
            self.arguments.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        )

    def share_gradient(self) -> None:
        """Average the gradient over the cards."""
        if self.cards > 1:
            dist.all_reduce(self.optimizer.gradient)
            self.optimizer.gradient.div_(self.cards)

    def agreed(self, values: list[float]) -> list[float]:
        """Return the first card's numbers on every card."""
        if self.cards == 1:
            return values
        tensor = torch.tensor(values, device=self.device, dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return list(tensor.tolist())

    def now(self) -> float:
        """Return the time, the card having done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.time()

    def say(self, text: str) -> None:
        """Print, on the first card only."""
        if self.rank == 0:
            print(text, flush=True)

    def _load_state(self, file: Path) -> None:
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for value, kept in zip(self.average.values, state["average"], strict=True):
            value.copy_(kept)
        self.average.updates = state["updates"]
        self.seconds, self.steps = state["seconds"], state["steps"]
        self.steps_before = self.steps - WARM_UP_STEPS  # the optimiser is warm

    def _save(self) -> None:
        if self.rank == 0:
            self.average.swap()
            measured = self.measure()
            self.average.swap()
            self.say(f"measured: {measured}")
            out: Path = self.arguments.out
            save_average(self.module, self.average, out, self.name)
            save_module(self.module, out, self.name)
            record: dict[str, Any] = {
                "seconds": round(self.seconds, 1),
                "total_seconds": self.arguments.total,
                "steps": self.steps,
                "cards": self.cards,
                **measured,
            }
            write_record(out, self.name, record)
            if self.arguments.state:
                state = {
                    "module": self.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "average": self.average.values,
                    "updates": self.average.updates,
                    "seconds": self.seconds,
                    "steps": self.steps,
                }
                torch.save(state, self.arguments.state)
        if self.cards > 1:
            dist.barrier()


def parser(
    description: str | None, rate: float, seconds: float, total: float
) -> argparse.ArgumentParser:
    """Return the arguments that every kind of training takes.

    Args:
        description: of the kind.
        rate: the highest one, unless the caller says otherwise.
        seconds: of a sitting, likewise.
        total: seconds of all sittings, likewise.
    """
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    add = result.add_argument
    add("out", type=Path, help="folder for the weights")
    add("--seconds", type=float, default=seconds, help="of this sitting")
    add("--total", type=float, default=total, help="seconds of all sittings")
    add("--resume", type=Path, help="folder of weights to go on from")
    add("--state", type=Path, help="file that keeps the optimiser too")
    add("--rate", type=float, default=rate)
    add("--report", type=float, default=20, help="seconds between lines")
    add("--save", type=float, default=150, help="seconds between checkpoints")
    add("--small", action="store_true", help="a try on the CPU")
    return result
