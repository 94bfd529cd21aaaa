"""Which server has which name, and what to do when one of them is gone: single, Sentinel, Cluster.

Refuses to fail as a whole while any server that was asked answers: what the others have is given
up as unanswered. A block may be read from a replica at any time, since it never changes.

    single    one server for everything
    sentinel  a primary that the sentinels name, its replicas for reads when it is gone
    cluster   16,384 slots by CRC16 of the name; each has a primary and replicas
"""

from __future__ import annotations

import bisect
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ReadOnlyError, TryAgainError
from redis.sentinel import Sentinel

from bul.cache.tiers.shared.node import Command, ConnectionPlan, Node, Reply
from bul.clock import Clock
from bul.errors import TierUnavailable

__all__ = ["UNANSWERED", "Servers", "Topology", "make_servers"]

UNANSWERED: Final = object()
"""In place of a reply: the server that has the name could not be asked."""

DOWN_S: Final = 1.0
"""How long a server that failed is passed over, if there is another one to ask."""
REFRESH_S: Final = 0.25
"""At most so often is asked who is primary now."""
NODES_MAX: Final = 1024

_ELSEWHERE = (MovedError, ReadOnlyError)
_NOT_NOW = (AskError, TryAgainError, ClusterDownError)


class Topology(Protocol):
    """Who has what, as last heard."""

    spread: bool
    """Names lie on different servers, so commands take one name each."""

    def nodes(self, name: bytes) -> Sequence[Node]:
        """The primary of `name` first, then its replicas. Empty if unknown."""
        ...

    def primaries(self) -> Sequence[Node]: ...

    def refresh(self) -> None:
        """Ask again. Raises what redis-py raises."""
        ...

    def close(self) -> None: ...


class Servers:
    """Commands to whoever has the name. Any thread. Raises TierUnavailable alone."""

    def __init__(self, topology: Topology, clock: Clock) -> None:
        self._topology = topology
        self._clock = clock
        self._lock = threading.Lock()
        self._down_until_s: dict[str, float] = {}
        self._refreshed_s = float("-inf")
        self._known = False
        self.refreshes_total = 0
        self.failures_total = 0

    @property
    def spread(self) -> bool:
        """Whether commands must have one name each."""
        return self._topology.spread

    def ask(self, commands: Sequence[Command], *, reading: bool) -> list[Reply]:
        """A reply for each of `commands`; UNANSWERED for some.

        Sent to all servers at once, then read from each: as slow as the slowest. A server that
        failed, or said that a name has moved, is passed over in one second try.
        """
        self._refresh_if(not self._known)
        replies: list[Reply] = [UNANSWERED] * len(commands)
        waiting: Sequence[int] = range(len(commands))
        error: Exception | None = None
        for last in (False, True):
            groups = self._groups(commands, waiting, reading=reading)
            error = self._ask_groups(commands, groups, replies) or error
            waiting = [i for i in waiting if _must_ask_again(replies[i])]
            if not waiting or last or not self._has_others():
                break
            self._refresh_if(wanted=True)
        replies = [UNANSWERED if isinstance(r, _ELSEWHERE + _NOT_NOW) else r for r in replies]
        if commands and all(reply is UNANSWERED for reply in replies):
            why = error or "nobody serves these names now"
            raise TierUnavailable(f"the shared cache does not answer: {why}") from error
        return replies

    def ask_primaries(self, command: Command) -> list[tuple[Node, Reply]]:
        """The same command to every primary."""
        self._refresh_if(not self._known)
        try:
            return [(node, node.ask(command)[0]) for node in self._topology.primaries()]
        except Exception as error:
            raise TierUnavailable(f"the shared cache does not answer: {error}") from error

    def ask_node(self, node: Node, *commands: Command) -> list[Reply]:
        """Several commands to one server."""
        try:
            return node.ask(*commands)
        except Exception as error:
            raise TierUnavailable(f"the shared cache does not answer: {error}") from error

    def close(self) -> None:
        self._topology.close()

    def _has_others(self) -> bool:
        return not isinstance(self._topology, _Single)

    def _groups(
        self, commands: Sequence[Command], waiting: Sequence[int], *, reading: bool
    ) -> dict[Node, list[int]]:
        """Positions by the server to ask; what nobody can be asked for is in none."""
        groups: dict[Node, list[int]] = {}
        now_s = self._clock.now_s()
        for position in waiting:
            nodes = self._topology.nodes(_name(commands[position]))
            up = [node for node in nodes if self._down_until_s.get(node.name, 0.0) <= now_s]
            if not reading:
                up = [node for node in up if node is nodes[0]]
            if up:
                groups.setdefault(up[0], []).append(position)
        return groups

    def _ask_groups(
        self, commands: Sequence[Command], groups: dict[Node, list[int]], replies: list[Reply]
    ) -> Exception | None:
        """Fill in `replies`; the last failure."""
        failure: Exception | None = None
        sent: list[tuple[Node, list[int], Callable[[], list[Reply]]]] = []
        for node, positions in groups.items():
            try:
                sent.append((node, positions, node.send([commands[i] for i in positions])))
            except Exception as error:  # noqa: BLE001 - also what a parser makes of garbage
                failure = self._failed(node, error)
        for node, positions, receive in sent:
            try:
                for position, reply in zip(positions, receive(), strict=True):
                    replies[position] = reply
            except Exception as error:  # noqa: BLE001 - as above
                failure = self._failed(node, error)
        return failure

    def _failed(self, node: Node, error: Exception) -> Exception:
        with self._lock:
            self.failures_total += 1
            if self._has_others():
                self._down_until_s[node.name] = self._clock.now_s() + DOWN_S
        return error

    def _refresh_if(self, wanted: bool) -> None:
        if not wanted:
            return
        with self._lock:
            now_s = self._clock.now_s()
            if self._known and now_s - self._refreshed_s < REFRESH_S:
                return
            self._refreshed_s = now_s
            try:
                self._topology.refresh()
                self._known = True
                self.refreshes_total += 1
            except Exception as error:
                if not self._known:
                    raise TierUnavailable(f"the shared cache does not answer: {error}") from error


def _name(command: Command) -> bytes:
    """The (first) name of a command: its second word, or the fourth of EVAL."""
    name = command[3 if command[0] == "EVAL" else 1]
    assert isinstance(name, bytes)
    return name


def _must_ask_again(reply: Reply) -> bool:
    return reply is UNANSWERED or isinstance(reply, _ELSEWHERE)


class _Single:
    spread = False

    def __init__(self, plan: ConnectionPlan) -> None:
        host, port = plan.address.nodes[0] if plan.address.nodes else ("", 0)
        self._nodes = (Node(plan, host, port),)

    def nodes(self, name: bytes) -> Sequence[Node]:
        return self._nodes

    def primaries(self) -> Sequence[Node]:
        return self._nodes

    def refresh(self) -> None:
        """Nothing to ask."""

    def close(self) -> None:
        self._nodes[0].close()


class _Pools:
    """Nodes by address, made when first heard of."""

    def __init__(self, plan: ConnectionPlan) -> None:
        self._plan = plan
        self._nodes: dict[tuple[str, int], Node] = {}

    def node(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            if len(self._nodes) >= NODES_MAX:
                raise TierUnavailable(f"a cluster of more than {NODES_MAX} servers")
            node = self._nodes[host, port] = Node(self._plan, host, port)
        return node

    def all(self) -> Sequence[Node]:
        return tuple(self._nodes.values())

    def close(self) -> None:
        for node in self.all():
            node.close()


class _Watched:
    """A primary that sentinels watch."""

    spread = False

    def __init__(self, plan: ConnectionPlan) -> None:
        self._pools = _Pools(plan)
        self._service = plan.address.service
        make: Any = Sentinel  # untyped
        self._sentinel = make(
            list(plan.address.nodes), sentinel_kwargs=dict(plan.sentinel_options())
        )
        self._nodes: tuple[Node, ...] = ()

    def nodes(self, name: bytes) -> Sequence[Node]:
        return self._nodes

    def primaries(self) -> Sequence[Node]:
        return self._nodes[:1]

    def refresh(self) -> None:
        primary = self._sentinel.discover_master(self._service)
        replicas = self._sentinel.discover_slaves(self._service)
        self._nodes = tuple(self._pools.node(host, port) for host, port in (primary, *replicas))

    def close(self) -> None:
        self._pools.close()
        for client in self._sentinel.sentinels:
            client.close()


@dataclasses.dataclass(frozen=True, slots=True)
class _SlotMap:
    """starts: first slots, rising. ranges: last slot and servers, primary first, of each."""

    starts: tuple[int, ...]
    ranges: tuple[tuple[int, tuple[Node, ...]], ...]

    def nodes(self, slot: int) -> Sequence[Node]:
        at = bisect.bisect_right(self.starts, slot) - 1
        return self.ranges[at][1] if at >= 0 and slot <= self.ranges[at][0] else ()


class _Cluster:
    """Slots as CLUSTER SLOTS tells them."""

    spread = True

    def __init__(self, plan: ConnectionPlan) -> None:
        self._pools = _Pools(plan)
        for host, port in plan.address.nodes:
            self._pools.node(host, port)
        self._map = _SlotMap((), ())
        self._told_by: Node | None = None

    def nodes(self, name: bytes) -> Sequence[Node]:
        return self._map.nodes(key_slot(name))

    def primaries(self) -> Sequence[Node]:
        return tuple({nodes[0].name: nodes[0] for _, nodes in self._map.ranges}.values())

    def refresh(self) -> None:
        failure: Exception | None = None
        # Who answered last time is asked first: one that hangs costs a timeout.
        for node in sorted(self._pools.all(), key=lambda node: node is not self._told_by):
            try:
                [slots] = node.ask(("CLUSTER", "SLOTS"))
                self._learn(slots, node)
            except Exception as error:  # noqa: BLE001 - another one may know; also if it refused
                failure = error
            else:
                return
        raise failure or TierUnavailable("no server of the cluster is known")

    def close(self) -> None:
        self._pools.close()

    def _learn(self, slots: Any, told_by: Node) -> None:
        own_host = told_by.name.rpartition(":")[0]
        found = sorted(
            (int(low), int(high), tuple(self._node(one, own_host) for one in nodes))
            for low, high, *nodes in slots
        )
        self._map = _SlotMap(
            tuple(low for low, _, _ in found), tuple((high, nodes) for _, high, nodes in found)
        )
        self._told_by = told_by

    def _node(self, one: Any, own_host: str) -> Node:
        host = one[0].decode() if one[0] else own_host
        return self._pools.node(host, int(one[1]))


def make_servers(plan: ConnectionPlan, clock: Clock) -> Servers:
    """For any address; asks nobody yet."""
    kinds: dict[str, Callable[[ConnectionPlan], Topology]] = {
        "sentinel": _Watched,
        "cluster": _Cluster,
    }
    return Servers(kinds.get(plan.address.kind, _Single)(plan), clock)
