"""What a policy learns runs beside the requests, never in front of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from bul.cache.eviction.adaptive import Adaptive
from bul.cache.eviction.contract import Access
from bul.cache.learner import Learner


def test_a_long_lesson_holds_nobody_up_and_further_ones_are_dropped() -> None:
    learner, begun, go_on = Learner(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        go_on.wait(10.0)

    learner.submit(long)
    assert begun.wait(10.0)
    ran: list[int] = []
    for number in range(5):
        learner.submit(lambda number=number: ran.append(number))  # type: ignore[misc]  # bound now
    assert learner.dropped_total == 4
    go_on.set()
    learner.close()
    assert ran == [0]


def test_a_lesson_that_raises_is_counted_and_the_next_one_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, done = Learner(), threading.Event()

    def bad() -> None:
        raise ValueError

    learner.submit(bad)
    while not learner.failed_total:
        threading.Event().wait(0.001)
    learner.submit(done.set)
    assert done.wait(10.0)
    learner.close()
    learner.submit(bad)
    assert learner.failed_total == 1
    assert "lesson raised" in caplog.text


def test_the_adaptive_policy_runs_no_lesson_of_its_own_once_it_has_a_teacher() -> None:
    lessons: list[Callable[[], None]] = []
    policy = Adaptive(50)
    policy.learn_with(lessons.append)
    for number in range(200):
        policy.access(Access(path=[number, (number, 1)], now_s=float(number)))
    assert len(lessons) > 3
    assert not policy._model.ready  # asked for is not learned: it still evicts as LRU
    before = policy._model._rates._log_hazards.copy()
    for lesson in lessons:
        lesson()
    assert policy._model.ready
    assert (policy._model._rates._log_hazards != before).any()


def test_lessons_in_another_thread_disturb_no_request() -> None:
    learner = Learner()
    policy = Adaptive(300)
    policy.learn_with(learner.submit)
    for number in range(3000):
        talk = number % 40
        path = [(talk, turn) for turn in range(number // 400 + 3)]
        policy.access(Access(path=path, now_s=number * 0.05))
        policy.finish(path, number % 90)
    learner.close()
    assert learner.failed_total == 0
    assert 0 < len(policy) <= 300
