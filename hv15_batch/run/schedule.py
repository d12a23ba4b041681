"""When a run may render: `until`, `time_limit`, `window` and the file `pause`. No torch.

Times of day are local time, daylight saving included.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from pathlib import Path

from hv15_batch.clock import Clock
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import Event, Finished, Job
from hv15_batch.errors import Refused
from hv15_batch.forecast.pace import Pace
from hv15_batch.record import DONE_STATUSES, is_denoised_here
from hv15_batch.units import Say, counted, format_duration

_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_DURATION = re.compile(r"(?:([0-9]{1,6})h)?\s*(?:([0-9]{1,6})m(?:in)?)?\s*(?:([0-9]{1,8})s)?")
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Stop:
    """No further clip is started; the run ends."""

    reason: str
    is_of_clip: bool = False
    """This clip would not end in time on this worker; a shorter one may, or on another worker."""


@dataclass(frozen=True)
class Wait:
    """The next clip may start later; until then the card is free."""

    state: str
    """waiting or paused, for `status.json`."""
    reason: str
    until: datetime | None = None
    """None if only a user can end the wait."""

    @property
    def line(self) -> str:
        """The line for the user."""
        end = f" until {self.until:%a %H:%M}" if self.until else ""
        return f"{self.state.capitalize()}{end} ({self.reason}); the card is free."


Verdict = Stop | Wait | None
"""None: the clip may start."""


class Schedule:
    """Decides by the clock, and by the file `pause`, whether the next clip may start."""

    def __init__(self, rules: Rules, pause: Path, clip_seconds: Callable[[Job], float]) -> None:
        """Take the rules.

        Args:
            rules: Deadlines and window.
            pause: File that pauses the run while it exists.
            clip_seconds: Returns the seconds that a job would take; 0 if unknown.
        """
        self._rules = rules
        self._clock = rules.clock
        self._pause = pause
        self._clip_seconds = clip_seconds

    @property
    def limits_clips(self) -> bool:
        """Whether it depends on a clip's length whether it may start."""
        return bool(self._rules.deadlines) or self._rules.window is not None

    def __call__(self, job: Job) -> Verdict:
        """Return whether this clip may start, must wait, or ends the run."""
        now, seconds = self._clock.now(), self._clip_seconds(job)
        length = f"the next clip takes about {format_duration(seconds)}"
        window = self._rules.window
        if window is not None and seconds > window.seconds:
            return Stop(f"{window.setting}: {length}, longer than the window; widen it", True)
        begin = window.begin(now, seconds) if window is not None else now
        delay = (begin - now).total_seconds()
        for deadline in self._rules.deadlines:
            left = deadline.seconds_left(self._clock)
            if left <= 0:
                return Stop(f"{deadline.setting}: the time is over")
            if left < delay:
                return Stop(f"{deadline.setting}: the window opens later", True)
            if left < delay + seconds:
                return Stop(f"{deadline.setting}: {length}", True)
        if self._pause.exists():
            folder = shlex.quote(str(self._pause.parent))
            return Wait("paused", f"hv15-batch status {folder} --unpause resumes")
        if window is not None and delay > 0:
            is_open = window.current(now)[0] <= now
            return Wait("waiting", f"{window.setting}{f', {length}' if is_open else ''}", begin)
        return None


class FirstClip:
    """Says after the first clip of a run how many more will be finished by the deadline."""

    def __init__(self, rules: Rules, pace: Pace, say: Say, compile_seconds: float) -> None:
        """Follow a run.

        Args:
            rules: Without a deadline nothing is said.
            pace: Expects the clips that are left.
            say: Prints the line.
            compile_seconds: Part of a cold compiled clip's denoising that does not come again.
        """
        self._rules, self._pace, self._say = rules, pace, say
        self._compile_seconds = compile_seconds
        self._is_said = not rules.deadlines

    def submitted(self, job: Job, worker: int = 0) -> None:
        """Nothing is known of a clip that starts."""

    def heard(self, event: Event, worker: int = 0) -> None:
        """Say the line at the first clip that was denoised here, is done, and is full-size."""
        if self._is_said or not isinstance(event, Finished):
            return
        record = event.record
        if record.status not in DONE_STATUSES or not is_denoised_here(vars(record)):
            return
        if not self._pace.is_modelled(event.job):
            return  # of a small model beside full-size ones
        self._is_said = True
        share = 1.0
        if record.is_cold and record.compiled and record.denoise_seconds:
            share = max(1 - self._compile_seconds / record.denoise_seconds, 0.5)
        finishes = list(self._rules.finishes(self._pace.lengths(share)))
        if finishes:
            end = min(self._rules.ends())
            count = sum(finish <= end for finish in finishes)
            settings = ", ".join(deadline.setting for deadline in self._rules.deadlines)
            self._say(
                f"At the first clip's pace {count} of {counted(len(finishes), 'more clip')} will "
                f"be done until {end:%a %H:%M} ({settings})."
            )


# -- settings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadline:
    """A moment by which every started clip must be finished."""

    setting: str
    """As typed, e.g. `until=07:00`."""
    moment: datetime | None = None
    """Local time; None if `limit_seconds` counts."""
    limit_seconds: float | None = None
    """Seconds from the start of the command; None if `moment` counts."""

    def seconds_left(self, clock: Clock) -> float:
        """Return the seconds until the deadline; negative after it."""
        if self.moment is not None:
            return (self.moment - clock.now()).total_seconds()
        assert self.limit_seconds is not None
        return self.limit_seconds - clock.elapsed_seconds()


@dataclass(frozen=True)
class Window:
    """The part of each day in which clips are rendered. It may cross midnight."""

    setting: str
    """As typed, e.g. `window=22:00-07:00`."""
    opens: time_of_day
    closes: time_of_day

    @property
    def seconds(self) -> float:
        """Length on a day without a change of daylight saving."""
        return ((_minutes(self.closes) - _minutes(self.opens)) * 60) % _DAY_SECONDS

    def current(self, now: datetime) -> tuple[datetime, datetime]:
        """Return begin and end of the window that is open now, else of the next one."""
        today = now.astimezone().date()
        for days in range(-1, 4):
            first = today + timedelta(days=days)
            last = first if self.closes > self.opens else first + timedelta(days=1)
            opening, closing = _moment(first, self.opens), _moment(last, self.closes)
            if now < closing and opening < closing:  # daylight saving may skip a short window
                return opening, closing
        raise AssertionError(f"{self.setting}: never open")

    def begin(self, now: datetime, seconds: float) -> datetime:
        """Return the first moment, now or later, at which work of that length fits."""
        opening, closing = self.current(now)
        moment = max(now, opening)
        if moment + timedelta(seconds=seconds) <= closing:
            return moment
        return self.current(closing)[0]


@dataclass(frozen=True)
class Rules:
    """A command's settings about time, parsed."""

    clock: Clock
    deadlines: tuple[Deadline, ...] = ()
    window: Window | None = None

    def ends(self) -> list[datetime]:
        """Return the moments of the deadlines, seen from now."""
        now = self.clock.now()
        return [
            d.moment or now + timedelta(seconds=d.seconds_left(self.clock)) for d in self.deadlines
        ]

    def ends_after(self, seconds: float) -> datetime:
        """Return when work of that total length, in many clips, will be done."""
        moment, window = self.clock.now(), self.window
        while window is not None:
            opening, closing = window.current(moment)
            moment = max(moment, opening)
            if moment + timedelta(seconds=seconds) <= closing:
                break
            seconds -= (closing - moment).total_seconds()
            moment = closing
        return moment + timedelta(seconds=seconds)

    def finishes(self, clips: Iterable[tuple[float, float]]) -> Iterator[datetime]:
        """Yield when each clip will be finished, if rendered one after another from now on.

        Args:
            clips: For each the seconds until the next one starts, and the seconds of its writing.
        """
        now = self.clock.now()
        for length, writing in clips:
            if self.window is not None and length + writing <= self.window.seconds:
                now = self.window.begin(now, length + writing)
            now += timedelta(seconds=length)
            yield now + timedelta(seconds=writing)


def read_rules(config: Config, clock: Clock) -> Rules:
    """Return a command's settings about time, counted from the start of its clock.

    Raises:
        Refused: A text is no time of day, duration or window.
    """
    deadlines, started = [], clock.started
    if config.until is not None:
        clock_time = _time_of_day("until", config.until, config.until, "07:00")
        moment = _moment(started.astimezone().date(), clock_time)
        if moment <= started:
            moment = _moment(started.astimezone().date() + timedelta(days=1), clock_time)
        deadlines.append(Deadline(f"until={config.until}", moment=moment))
    if config.time_limit is not None:
        seconds = _duration_seconds(config.time_limit)
        deadlines.append(Deadline(f"time_limit={config.time_limit}", limit_seconds=seconds))
    return Rules(clock, tuple(deadlines), _window(config.window))


def check_window(window: Window | None, seconds: Iterable[tuple[str, float]]) -> None:
    """Refuse a window in which a clip can never be finished.

    Args:
        window: The window, or None.
        seconds: Names of clips, and the seconds that each takes.

    Raises:
        Refused: A clip is longer; the message names both lengths.
    """
    if window is None:
        return
    for what, length in seconds:
        if length > window.seconds:
            raise Refused(
                f"{window.setting}: {what} takes about {format_duration(length)}, longer than the "
                f"window ({format_duration(window.seconds)}); widen it, or render shorter clips."
            )


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not dash:
        first = last = ""  # refused below, as a whole
    example = "22:00-07:00"
    opens = _time_of_day("window", text, first.strip(), example)
    closes = _time_of_day("window", text, last.strip(), example)
    if opens == closes:
        raise Refused(f"window={text}: begin and end must differ; leave it out for all day.")
    return Window(f"window={text}", opens, closes)


def _time_of_day(key: str, text: str, part: str, example: str) -> time_of_day:
    match = _TIME_OF_DAY.fullmatch(part)
    if match is None:
        what = "a time of day" if key == "until" else "two times of day"
        raise Refused(f"{key}={text}: must be {what}, 00:00 to 23:59, for example {example}.")
    return time_of_day(int(match[1]), int(match[2]))


def _duration_seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not 0 < total <= 366 * _DAY_SECONDS:
        raise Refused(
            f"time_limit={text}: must be over 0 and at most a year, with its unit (h, min, s), for "
            "example 8h, 90min or 1h30m."
        )
    return float(total)


def _moment(day: date, clock_time: time_of_day) -> datetime:
    """Return when local time shows this; an hour later if daylight saving skips it."""
    # By its timestamp: `astimezone` alone would put a skipped time an hour earlier.
    seconds = datetime.combine(day, clock_time).timestamp()
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone()


def _minutes(clock_time: time_of_day) -> int:
    return clock_time.hour * 60 + clock_time.minute
