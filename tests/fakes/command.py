"""What one command line gave, what stands for a run, and the options of tiny models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hv15_batch.config.compose import Job, run_jobs
from hv15_batch.config.settings import Config
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig

TINY = ("model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=1")
CARD = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", 24 * 2**30, 23 * 2**30, "580.1", 450.0)


@dataclass(frozen=True)
class Answer:
    """What one command line gave."""

    code: int
    out: str
    err: str


def tiny_model(name: str) -> ModelConfig:
    """The model option of a tiny model, with the bucket and the sampling of a full-size one."""
    option = model_options()[name]
    usual = ModelConfig()
    return replace(option, target_size=usual.target_size, default_sampling=usual.default_sampling)


class FakeRuns:
    """Stands for `session.run`: remembers what it is given and ends as it is told."""

    def __init__(self, *ends: int | Exception) -> None:
        self.ends = list(ends)
        self.configs: list[Config] = []
        self.typed: list[tuple[str, ...]] = []
        self.sweeps: list[str | None] = []
        self.clocks: list[object] = []
        self.lines: list[str] = []
        self.swept: list[tuple[str, ...]] = []

    def __call__(
        self,
        config: Config,
        typed: tuple[str, ...],
        sweep: str | None,
        _say: object,
        clock: object,
        typed_line: str,
        swept: tuple[str, ...],
    ) -> int:
        self.swept.append(swept)
        self.lines.append(typed_line)
        self.configs.append(config)
        self.typed.append(typed)
        self.sweeps.append(sweep)
        self.clocks.append(clock)
        end = self.ends.pop(0) if self.ends else 0
        if isinstance(end, Exception):
            raise end
        return end


def settings_of(*words: str) -> list[Job]:
    """The jobs that a command line stands for."""
    jobs: list[Job] = []

    def keep(job: Job) -> int:
        jobs.append(job)
        return 0

    assert run_jobs(words, keep) == 0
    return jobs
