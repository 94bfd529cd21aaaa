"""What a policy learns runs beside the requests, never in front of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from bul.cache.eviction.adaptive import Adaptive, _Block
from bul.cache.eviction.adaptive_model import ReuseModel
from bul.cache.eviction.adaptive_request import RequestMemory
from bul.cache.eviction.contract import Access
from bul.cache.learner import Learner
from bul.testing.waiting import eventually


async def test_while_one_lesson_runs_and_one_waits_further_ones_are_that_one() -> None:
    learner, begun, go_on = Learner(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        go_on.wait(10.0)

    learner.submit(long)
    assert begun.wait(10.0)
    ran: list[int] = []
    for number in range(5):
        learner.submit(lambda number=number: ran.append(number))  # type: ignore[misc]  # bound now
    go_on.set()
    await eventually("it has", lambda: learner.lessons_total == 2)
    learner.close()
    assert ran == [0]


async def test_a_lesson_that_raises_is_counted_and_the_next_one_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, done = Learner(), threading.Event()

    def bad() -> None:
        raise ValueError

    learner.submit(bad)
    await eventually("it has", lambda: learner.failed_total == 1)
    learner.submit(done.set)
    assert done.wait(10.0)
    learner.close()
    learner.submit(bad)
    assert learner.failed_total == 1
    assert "lesson raised" in caplog.text


async def test_a_learner_that_fell_asleep_is_woken() -> None:
    learner = Learner(idle_s=0.0)
    learner.submit(lambda: None)
    await eventually("it has", lambda: learner._asleep)
    done = threading.Event()
    learner.submit(done.set)
    assert done.wait(10.0)
    await eventually("it has", lambda: learner._asleep)
    learner.close()


def worth(model: ReuseModel, request: RequestMemory, touches: int) -> float:
    """Of a block, 5 s after its request."""
    block = _Block(0, None, last=request, count=touches)
    return model.worths([block], request.at_s + 5.0, [1.0])[0]


def _talk(policy: Adaptive, requests: int) -> None:
    for number in range(requests):
        talk = number % 40
        path = [(talk, turn) for turn in range(number // 400 + 3)]
        policy.access(Access(path=path, now_s=number * 0.05))
        policy.finish(path, number % 90)


def test_with_a_teacher_a_request_computes_nothing_itself() -> None:
    lessons: list[Callable[[], None]] = []
    policy, control = Adaptive(50), Adaptive(50)
    policy.learn_with(lessons.append)
    for one in (policy, control):
        _talk(one, 400)
    assert control._model.ready
    assert control._model._net._steps > 50  # without a teacher all that has happened
    assert len(policy._model.log) == policy._model._net._steps == 0
    assert not policy._model.ready  # asked for is not learned: it still evicts as LRU
    before = policy._model._rates._log_hazards.copy()
    lessons[-1]()
    assert policy._model.ready
    assert (policy._model._rates._log_hazards != before).any()


def test_a_request_without_a_curve_of_its_own_is_judged_by_its_kind_and_gets_one_later() -> None:
    lessons: list[Callable[[], None]] = []
    policy = Adaptive(50)
    policy.learn_with(lessons.append)
    _talk(policy, 400)
    lessons[-1]()
    model = policy._model
    late = RequestMemory(401, 20.0, 3, residents=3, touches=0b1)
    model.arrived(late, 20.0)
    assert late.curves == b""
    borrowed = worth(model, late, 1)
    assert borrowed > 0.0
    lessons[-1]()
    assert len(late.curves) == 1 + 4 * 41
    assert worth(model, late, 1) > 0.0
    late.touches |= 0b10  # a later part of the request: these curves do not have that class yet
    assert worth(model, late, 2) > 0.0


def test_curves_are_replaced_while_they_are_read_and_never_changed() -> None:
    learner, policy = Learner(), Adaptive(300)
    policy.learn_with(learner.submit)
    held: dict[int, tuple[bytes, bytes]] = {}
    for number in range(6000):
        path = [(number % 40, turn) for turn in range(number // 400 + 3)]
        policy.access(Access(path=path, now_s=number * 0.05))
        policy.finish(path, number % 90)
        node = policy._nodes.get(path[0])
        curves = node.last.curves if node is not None else b""  # type: ignore[attr-defined]  # Adaptive's own
        held.setdefault(id(curves), (curves, bytes(bytearray(curves))))
    learner.close()
    assert learner.failed_total == 0
    assert learner.lessons_total > 0
    assert 0 < len(policy) <= 300
    assert all(curves == copy for curves, copy in held.values())
