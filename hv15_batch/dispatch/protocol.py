"""What an executor is: it takes jobs and answers with events. Plain picklable values, no torch.

Two executors stand behind this: a child process of this machine (`local`), and a worker of a Ray
cluster (`ray`), which has such a child process on its own machine.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.variant import OffloadKind
from hv15_batch.record import ClipRecord
from hv15_batch.weights.checkpoint import Checkpoint

WORKER_DIED = "WorkerDied"
WORKER_STALLED = "WorkerStalled"
GPU_LOST = "GpuLost"
DECLINED = "Declined"

Key = tuple[str, int | None]
"""A clip's `settings_sha256`, and which repetition of a benchmark it is."""


@dataclass(frozen=True)
class ModelSpec:
    """What an executor needs to know of a model."""

    config: Config
    """All settings, `model` being this one."""
    checkpoint: Checkpoint
    offload: OffloadKind
    streams_text_encoder: bool


@dataclass(frozen=True)
class ExecutorSpec:
    """What an executor needs to know once, before its first clip."""

    config: Config
    run_dir: Path
    run_id: str
    manifest_sha256: str
    checkpoint: Checkpoint
    """The weights; those of a tiny model are written by the executor."""
    hostname: str
    system_sha256: str
    worker_id: str = "local-0"
    """Executor within the run; a replaced one has the next number."""
    offload: OffloadKind = OffloadKind.resident
    """The profile chosen; never `auto`."""
    budget_bytes: int | None = None
    """What torch may take of the card; None on the CPU."""
    gpu: Gpu | None = None
    """The card that it renders on; None on the CPU."""
    streams_text_encoder: bool = False
    """The text encoder is larger than the budget and runs layer by layer."""
    compile_is_auto: bool = False
    """Compilation was not typed: where it fails, clips are rendered without it."""
    further: tuple[ModelSpec, ...] = ()
    """Models after that of `config`."""
    longest: Mapping[str, int] = field(default_factory=dict)
    """By model, video tokens of the longest clip that is to be denoised; not of models whose clips
    are only decoded."""
    only_card: str | None = None
    """UUID of the one card that it may see; None where no other executor has a card."""
    num_workers: int = 1
    """Executors that render this run at a time; on the CPU they share its cores."""
    worker: int = 0
    """Which of them it is; one that replaces it has the same number."""
    lock_descriptor: int | None = None
    """Of the run directory's lock, in the parent; a child process holds on to it too."""
    shares_inputs: bool = False
    """Embeddings go to the run's store, from which workers of other machines take them."""

    @property
    def models(self) -> dict[str, ModelSpec]:
        """Every model by its name."""
        first = ModelSpec(self.config, self.checkpoint, self.offload, self.streams_text_encoder)
        return {each.config.model.name: each for each in (first, *self.further)}

    def with_offloads(self, kinds: Mapping[str, OffloadKind]) -> ExecutorSpec:
        """Return the same with other profiles for some models."""
        first, *further = (
            replace(each, offload=kinds.get(name, each.offload))
            for name, each in self.models.items()
        )
        return replace(self, offload=first.offload, further=tuple(further))


@dataclass(frozen=True)
class Job:
    """One attempt at one clip."""

    clip: Clip
    attempt: int
    """Attempts at these settings so far, this one included."""
    use_latents: bool
    """Decode from saved latents where there are any."""
    repeat: int | None = None
    """Which repetition of a benchmark this is, from 1, or `WARM_UP`; None makes the clip."""
    on_torch_attention: bool = False
    """Render with torch's own attention, whatever the settings say: its frames were suspect."""
    encoding: bytes | None = None
    """What encoding its texts and image took, of `EncodingCosts`; None where it caused none."""

    @property
    def key(self) -> Key:
        """What tells it from every other job that an executor has."""
        return self.clip.settings_sha256, self.repeat


@dataclass(frozen=True)
class Note:
    """One line worth telling the user."""

    text: str
    offload: OffloadKind | None = None
    """The profile from here on, where it had to change; later workers begin with it."""


@dataclass(frozen=True)
class Loading:
    """Something is being loaded from now on, which takes its time."""

    what: str
    """E.g. `the text encoder`."""


@dataclass(frozen=True)
class Encoded:
    """Another text or image is encoded."""

    done: int
    total: int


@dataclass(frozen=True)
class EncodingCosts:
    """What encoding took. Another worker may render the clip that caused it."""

    by_clip: Mapping[str, bytes]
    """For the `Job` of the first clip that needs a text or image, by its `settings_sha256`."""


@dataclass(frozen=True)
class EncodingEnded:
    """The encoders are released."""


@dataclass(frozen=True)
class Stepped:
    """A denoising step has ended (`step` from 1), or another stage has started."""

    clip_id: str
    stage: str
    """load, encode, denoise or decode; once it says decode, the latents are saved."""
    step: int
    steps: int


@dataclass(frozen=True)
class Alive:
    """The program that renders said something: no progress that is counted, and no silence."""


@dataclass(frozen=True)
class Ready:
    """The device is free for the next clip; the last one may still be written."""


@dataclass(frozen=True)
class Finished:
    """An attempt has ended, well or not: its record is to be logged."""

    job: Job
    record: ClipRecord


@dataclass(frozen=True)
class Declined:
    """The configuration can't be carried out here; the message is for the user."""

    message: str


@dataclass(frozen=True)
class Died:
    """The executor is gone; its current clip is lost."""

    reason: str
    error_type: str = WORKER_DIED
    record: ClipRecord | None = None
    """What it could still say of the clip that it was rendering."""
    was_up: bool = field(default=True, compare=False)
    """False where it never got as far as to take a clip: that is the fault of no clip."""
    is_gone: bool = field(default=False, compare=False)
    """Its process or machine left the cluster; it comes back, if at all, as another worker."""


Event = (
    Note
    | Loading
    | Encoded
    | EncodingCosts
    | EncodingEnded
    | Stepped
    | Alive
    | Ready
    | Finished
    | Declined
    | Died
)
Passing = Note | Loading | Encoded | Stepped | Alive
"""Events that only tell; nobody has to act."""
Emit = Callable[[Event], None]
"""Sends an event to the parent."""


class RendererBroken(Exception):
    """A renderer can render no more, e.g. after a CUDA error that all later calls repeat."""

    def __init__(self, reason: str, record: ClipRecord | None) -> None:
        """Say why, and what became of the current clip."""
        super().__init__(reason)
        self.reason, self.record = reason, record


class Renderer(Protocol):
    """What runs inside an executor (`engine.render.ClipRenderer`, or a fake in tests)."""

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Encode the texts and images of these clips that the cache lacks.

        Raises:
            RendererBroken: see there.
        """

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        """Denoise and decode; return what writes the file and gives the record.

        Raises:
            RendererBroken: see there.
        """


class Executor(Protocol):
    """What the loop talks to, by its supervisor."""

    @property
    def waitable(self) -> Connection | None:
        """What becomes readable when there is an event; None before `start`."""

    def start(self) -> None:
        """Bring the executor up; returns at once."""

    def encode(self, clips: Sequence[Clip]) -> None:
        """Begin the encode phase; ends with `EncodingEnded`."""

    def submit(self, job: Job) -> None:
        """Hand over a clip; ends with `Ready` and, maybe later, `Finished`."""

    def poll(self, timeout_seconds: float) -> Event | None:
        """Return the next event, or None when there was none in that time."""

    def close(self) -> None:
        """End in order; all events have been taken."""

    def kill(self) -> None:
        """End at once."""

    def resident_bytes(self) -> int | None:
        """Return the host memory that it holds now; None where that is unknown."""


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals whose meaning is decided here; the worker ignores them."""
