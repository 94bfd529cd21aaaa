"""One contract for all policies: whatever is asked of them, the rules of the tree hold."""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bul.cache.eviction.contract import Access, EvictionPolicy
from bul.cache.eviction.make import POLICY_NAMES, make_policy
from bul.config import EVICTION_POLICIES
from bul.errors import ConfigError

PATHS = st.lists(st.integers(0, 2), max_size=6).map(
    # A key is the whole prefix, as a block's key is: equal key, equal prefix.
    lambda steps: [tuple(steps[: end + 1]) for end in range(len(steps))]
)


class PolicyMachine(RuleBasedStateMachine):
    """A model that only keeps a set of keys, told by the policy's own answers."""

    name = ""

    @initialize(capacity=st.integers(1, 8), seed=st.integers(0, 3))
    def start(self, capacity: int, seed: int) -> None:
        self.policy = make_policy(self.name, capacity, seed)
        self.resident: set[object] = set()
        self.holds: list[tuple[int, ...]] = []
        self.now_s = 0.0

    def _left(self, gone: list[object]) -> None:
        assert len(set(gone)) == len(gone)
        assert not set(gone) & set(self.holds)
        self.resident -= set(gone)

    @rule(path=PATHS, gap_s=st.floats(0, 1e6), output=st.integers(0, 2000))
    def access(self, path: list[tuple[int, ...]], gap_s: float, output: int) -> None:
        self.now_s += gap_s
        before = self.policy.match(path)
        assert before == len([key for key in path if key in self.resident])
        gone = self.policy.access(
            Access(path=path, now_s=self.now_s, output_tokens=output, session="s", tenant="t")
        )
        assert set(gone) <= self.resident | set(path)
        self.resident |= set(path)
        self._left(gone)
        kept = [key in self.resident for key in path]
        assert kept == sorted(kept, reverse=True)  # what stayed of the path is a prefix of it
        self._fits()
        self.policy.finish(path, output)

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        if self.resident and len(self.holds) < 4:
            key = data.draw(st.sampled_from(sorted(self.resident)))  # type: ignore[type-var] # keys are tuples here
            self.policy.hold(key)
            self.holds.append(key)

    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        if self.holds:
            key = data.draw(st.sampled_from(self.holds))
            self.holds.remove(key)
            self.policy.unhold(key)

    @rule(data=st.data(), path=PATHS)
    def remove(self, data: st.DataObject, path: list[tuple[int, ...]]) -> None:
        if not path:
            return
        key = path[-1]
        family = {k for k in self.resident if k[: len(key)] == key}  # type: ignore[index] # keys are tuples here
        assert set(self.policy.remove(key)) == family
        self.resident -= family
        self.holds = [held for held in self.holds if held not in family]

    @rule(capacity=st.integers(1, 8))
    def resize(self, capacity: int) -> None:
        self._left(self.policy.resize(capacity))
        assert self.policy.capacity == capacity
        self._fits()

    def _fits(self) -> None:
        bound = {key[:end] for key in self.holds for end in range(1, len(key) + 1)}
        assert len(self.resident) <= max(self.policy.capacity, len(bound))

    @invariant()
    def keeps_the_rules(self) -> None:
        if not hasattr(self, "policy"):
            return
        resident = self.resident
        assert len(self.policy) == len(resident)
        assert all(key in self.policy for key in resident)
        assert all(len(key) == 1 or key[:-1] in resident for key in resident)  # type: ignore[arg-type,index] # keys are tuples here
        assert set(self.holds) <= resident


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_policy_keeps_prefix_closure_capacity_and_holds(name: str) -> None:
    machine = type("Machine", (PolicyMachine,), {"name": name})
    case = machine.TestCase  # type: ignore[attr-defined] # hypothesis adds it
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
    case().runTest()


def test_the_contract_catches_a_policy_that_evicts_held_blocks() -> None:
    class Careless(PolicyMachine):
        name = "lru"

        def start(self, capacity: int, seed: int) -> None:
            super().start(capacity, seed)
            self.policy.hold = lambda key: None  # type: ignore[method-assign] # breaking it is the point
            self.policy.unhold = lambda key: None  # type: ignore[method-assign] # breaking it is the point

    Careless.start = initialize(capacity=st.integers(1, 2), seed=st.just(0))(Careless.start)  # type: ignore[method-assign] # breaking it is the point
    case = Careless.TestCase
    case.settings = settings(
        max_examples=200,
        stateful_step_count=30,
        deadline=None,
        database=None,
        phases=[Phase.generate],
    )
    with pytest.raises(AssertionError):
        case().runTest()


def _tree_paths(seed: int, requests: int) -> list[list[tuple[int, ...]]]:
    rng = random.Random(seed)
    paths = []
    for _ in range(requests):
        steps = [rng.randrange(4) for _ in range(rng.randrange(1, 8))]
        paths.append([tuple(steps[: end + 1]) for end in range(len(steps))])
    return paths


def _play(policy: EvictionPolicy, paths: list[list[tuple[int, ...]]]) -> list[tuple[object, ...]]:
    return [
        tuple(policy.access(Access(path=path, now_s=float(number))))
        for number, path in enumerate(paths)
    ]


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_the_same_seed_gives_the_same_evictions(name: str) -> None:
    paths = _tree_paths(seed=7, requests=400)
    assert _play(make_policy(name, 30, seed=1), paths) == _play(
        make_policy(name, 30, seed=1), paths
    )


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_cache_as_large_as_the_footprint_never_evicts(name: str) -> None:
    paths = _tree_paths(seed=3, requests=200)
    footprint = len({key for path in paths for key in path})
    assert not any(_play(make_policy(name, footprint), paths))


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_what_nobody_asked_for_comes_in_only_where_there_is_room(name: str) -> None:
    policy = make_policy(name, 6)
    policy.access(Access(path=["a", "b"], now_s=0.0))
    assert policy.access(Access(path=["x", "y", "z"], now_s=1.0, speculative=True)) == []
    assert policy.access(Access(path=["a", "b", "c", "d"], now_s=2.0, speculative=True)) == ["d"]
    assert policy.match(["a", "b", "c"]) == 3
    assert policy.match(["x", "y", "z"]) == 3
    assert policy.access(Access(path=["q"], now_s=3.0, speculative=True)) == ["q"]


@pytest.mark.parametrize("name", ["lru", "adaptive", "arc"])
def test_what_nobody_asked_for_goes_before_what_was_used_and_the_last_of_it_first(
    name: str,
) -> None:
    policy = make_policy(name, 3)
    policy.access(Access(path=["used"], now_s=0.0))
    for key in ("wanted", "wanted less"):
        policy.access(Access(path=[key], now_s=1.0, speculative=True))
    assert policy.access(Access(path=["new"], now_s=2.0)) == ["wanted less"]
    assert policy.access(Access(path=["newer"], now_s=3.0)) == ["wanted"]


def _counts(policy: EvictionPolicy) -> list[int]:
    return [node.count for node in policy._nodes.values()]  # type: ignore[attr-defined]  # inside


@pytest.mark.parametrize("name", ["adaptive", "lfu", "s3fifo", "lecar"])
def test_a_request_that_comes_in_several_calls_is_one_use(name: str) -> None:
    path = [(number,) for number in range(6)]
    whole, parts, control = (make_policy(name, 20) for _ in range(3))
    for now_s in (0.0, 60.0):
        whole.access(Access(path=path, now_s=now_s))
        for done in (0, 2, 4):
            parts.access(Access(path=path[: done + 2], now_s=now_s, touched=done))
            control.access(Access(path=path[: done + 2], now_s=now_s))
    assert _counts(parts) == _counts(whole)
    assert _counts(control) != _counts(whole)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_the_garbage_collector_has_nothing_to_do_with_blocks(name: str) -> None:
    policy = make_policy(name, 500)
    for chat in range(200):
        policy.access(Access(path=list(range(chat * 10, chat * 10 + 8)), now_s=float(chat)))
    assert not gc.is_tracked(policy._nodes)  # type: ignore[attr-defined]  # inside
    assert not any(gc.is_tracked(node) for node in policy._nodes.values())  # type: ignore[attr-defined]  # inside
    assert gc.is_tracked({"a dict of a list": []})


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_what_does_not_follow_its_parent_is_not_taken_for_a_hit(name: str) -> None:
    policy = make_policy(name, 8)
    policy.access(Access(path=["a", "b"], now_s=0.0))
    assert policy.match(["x", "b"]) == 0
    policy.access(Access(path=["x", "b"], now_s=1.0))
    assert policy.match(["a", "b"]) == 2
    assert policy.match(["x"]) == 1


def test_lru_equals_a_naive_leaf_only_lru() -> None:
    policy, last_used, naive = make_policy("lru", 25), {}, []
    paths = _tree_paths(seed=5, requests=600)
    for number, path in enumerate(paths):
        last_used.update(dict.fromkeys(path, number))
        gone = []
        while len(last_used) > 25:
            parents = {key[:-1] for key in last_used}
            leaves = [key for key in last_used if key not in parents]
            gone.append(min(leaves, key=lambda key: last_used[key]))
            del last_used[gone[-1]]
        naive.append(tuple(gone))
    assert _play(policy, paths) == naive


def test_the_settings_name_exactly_the_policies_that_can_be_made() -> None:
    assert set(EVICTION_POLICIES) == set(POLICY_NAMES)


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 's3fifo'"):
        make_policy("s3-fifo", 8)


def test_a_capacity_under_one_block_is_refused() -> None:
    assert make_policy("lru", 1).capacity == 1
    with pytest.raises(ConfigError, match="at least 1 block, was 0"):
        make_policy("lru", 0)
