"""Which clip each worker takes next, and how the dry run predicts it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from fakes.planned import BASE, clip_of

from hv15_batch.clip import Group
from hv15_batch.dispatch.protocol import Job
from hv15_batch.forecast._eta import EtaBasis, Measured, course, time_left
from hv15_batch.run.rendering.queue import Queue


def job(name: str, frames: int, model: str = "a") -> Job:
    """A job of so many frames; a frame takes a second."""
    clip = clip_of(0, replace(BASE, prompt=name, num_frames=frames, model=model))
    return Job(replace(clip, row_id=name), 1, True)


def seconds(job: Job) -> float:
    return float(job.clip.settings.num_frames)


def drain(queue: Queue, workers: int, load: float = 0.0) -> list[tuple[float, int, str]]:
    """Let workers take jobs until none is left; return when each clip started, where, and which."""
    free = [(0.0, number, None) for number in range(workers)]
    at: dict[int, Group | None] = {}
    begun: list[tuple[float, int, str]] = []
    while free:
        free.sort(key=lambda each: each[:2])
        now, number, own = free.pop(0)
        elsewhere = Counter(g for n, g in at.items() if n != number and g is not None)
        taken = queue.next_for(own, elsewhere)
        if taken is None:
            at.pop(number, None)
            continue
        queue.take(taken)
        group = taken.clip.settings.group
        begun.append((now, number, taken.clip.row_id))
        at[number] = group
        free.append((now + seconds(taken) + (load if group != own else 0), number, group))
    return begun


def test_one_worker_keeps_the_order_of_the_plan() -> None:
    jobs = [job("x", 1), job("y", 9, "b"), job("z", 5)]

    assert [name for _, _, name in drain(Queue(jobs), 1)] == ["x", "y", "z"]


def test_several_take_the_longest_first_and_equal_ones_in_the_order_of_the_plan() -> None:
    jobs = [job("x", 1), job("y", 9), job("z", 5), job("w", 9)]

    begun = drain(Queue(jobs, seconds), 2)

    assert [name for _, _, name in begun] == ["y", "w", "z", "x"]


def test_each_worker_begins_with_a_group_of_its_own() -> None:
    jobs = [job(f"{model}{n}", 5, model) for model in "ab" for n in range(6)]

    begun = drain(Queue(jobs, seconds, lambda _job, _own: 100.0), 2, load=100.0)

    by_worker = {number: {name[0] for _, n, name in begun if n == number} for number in (0, 1)}
    assert sorted(map(sorted, by_worker.values())) == [["a"], ["b"]]


@pytest.mark.parametrize(("load", "changes"), [(8.0, True), (40.0, False)])
def test_a_worker_changes_its_group_only_if_loading_takes_less_than_it_saves(
    load: float, changes: bool
) -> None:
    jobs = [job("b0", 21, "b"), *(job(f"a{n}", 5, "a") for n in range(8))]

    begun = drain(Queue(jobs, seconds, lambda _job, _own: load), 2, load=load)

    helper = next(number for _, number, name in begun if name == "b0")
    assert (len([1 for _, number, _ in begun if number == helper]) > 1) == changes
    assert len(begun) == 9


def test_a_job_waits_while_another_worker_renders_its_latents() -> None:
    slow = job("x", 5)
    fast = replace(slow, clip=replace(slow.clip, settings_sha256="f" * 64))
    queue = Queue([slow, fast], seconds)
    first = queue.next_for(None, {})
    assert first is slow
    queue.take(first)

    assert queue.next_for(None, {}, {slow.clip.denoise_sha256}) is None
    assert queue.next_for(None, {}) is fast


def test_what_is_put_back_comes_first_and_what_is_dropped_is_gone() -> None:
    jobs = [job("x", 9), job("y", 5), job("z", 7, "b")]
    queue = Queue(jobs, seconds)
    small = jobs[1]
    queue.take(small)
    queue.put_back([small])

    assert queue.next_for(small.clip.settings.group, {}) is small
    dropped = queue.drop({jobs[2].clip.settings.group})
    assert dropped == [jobs[2]]
    assert len(queue) == 2
    assert list(queue) == [jobs[0], small]


# -- what is predicted --------------------------------------------------------------------------


def predicted(work: list[tuple[Any, float]], workers: int, load: float) -> float:
    return course(work, workers, lambda _own, _group: load, 0.0, 0.0).seconds


def test_the_predicted_course_is_that_of_the_queue() -> None:
    jobs = [job(f"{m}{n}", 4 * (n % 5) + 1, m) for m in "abc" for n in range(40)]
    load = 30.0
    for workers in (1, 2, 3, 5, 8, 64):
        begun = drain(Queue(jobs, seconds, lambda _job, _own: load), workers, load)
        frames = {each.clip.row_id: seconds(each) for each in jobs}
        loaded: dict[int, str] = {}
        ends = []
        for now, number, name in begun:
            wait = load if loaded.get(number) != name[0] else 0.0
            loaded[number] = name[0]
            ends.append(now + wait + frames[name])
        work = [(each.clip.settings.group, seconds(each)) for each in jobs]
        assert predicted(work, workers, load) == pytest.approx(max(ends), rel=0.02)


def test_equal_clips_take_whole_rounds_and_the_last_round_leaves_workers_idle() -> None:
    found = course([("a", 60.0)] * 9, 4, lambda _own, _group: 10.0, 5.0, 3.0)

    assert found.seconds == 5 + 10 + 3 * 60 + 3
    assert found.idle_seconds == pytest.approx(3 * 60 / 4)
    assert len(found.ready_seconds) == 9


def test_more_workers_than_clips_cost_nothing() -> None:
    found = course([("a", 60.0)] * 2, 64, lambda _own, _group: 10.0, 0.0, 0.0)

    assert found.seconds == 70
    assert found.idle_seconds == pytest.approx(70 * 62 / 64)


def test_several_workers_share_the_time_that_is_left() -> None:
    measured = {"k": [Measured(60.0, 1.0)] * 9}
    counts, known = {"k": 12}, {"k": 60.0}
    alone = time_left(counts, known, measured, EtaBasis.measured)
    four = time_left(counts, known, measured, EtaBasis.measured, [("k", 30.0)] * 4, num_workers=4)

    assert alone.p50_seconds == pytest.approx(720)
    assert four.p50_seconds == pytest.approx((720 - 4 * 30) / 4 + 60 * 0.75 / 2)
    assert four.p90_seconds >= four.p50_seconds


@pytest.mark.parametrize(
    ("counts", "current", "seconds"),
    [
        ({"long": 8}, [("long", 0.0)] * 8, 600),
        ({"long": 8}, [("long", 590.0)] * 8, 10),
        ({"long": 1}, [("long", 0.0)], 600),
        ({"short": 7, "huge": 1}, [("short", 0.0)] * 7 + [("huge", 0.0)], 3600),
        ({"huge": 1}, [("huge", 1000.0)], 2600),
    ],
)
def test_a_run_of_several_workers_ends_with_its_longest_clip(
    counts: dict[str, int], current: list[tuple[str, float]], seconds: float
) -> None:
    lengths = {"short": 60.0, "long": 600.0, "huge": 3600.0}
    measured = {kind: [Measured(length, 1.0)] * 5 for kind, length in lengths.items()}

    left = time_left(counts, lengths, measured, EtaBasis.measured, current, num_workers=8)

    assert left.p50_seconds == pytest.approx(seconds)
