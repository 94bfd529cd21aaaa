"""The shared tier: blocks in Valkey or Redis, so that several hosts compute a prefix once.

Refuses to serve a byte that its record's header does not vouch for, to ask twice (a failure is a
miss and the breaker's business), and to keep count of room: the server's own `maxmemory` bounds
it. Any eviction policy is fine; an orphan, whose parent was evicted, is a miss.

    names:  bul:IDENTITY:KEY, 16 and 64 hex digits; of another identity nothing is ever found
    match:  EXISTS, one round trip
    get:    MGET, tails first; in a cluster a GET each, pipelined to all servers at once
    set:    EXISTS, then one pipeline of SET with the missing ones, tails first

Tails first, because a server evicts what was used least recently: of a chain that was touched
over several of its clock's seconds, the tail is the oldest. Open `tier.py`, `record.py`,
`servers.py`, `node.py`, in this order.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from bul.blocks.chain import KEY_BYTES
from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport
from bul.cache.tiers.disk.read import own_key
from bul.cache.tiers.shared.node import Command, Node, Reply
from bul.cache.tiers.shared.record import (
    DELETE_VALUE,
    MARK_BYTES,
    RECORD_BYTES_MAX,
    SET_VALUE,
    Damaged,
    decode_record,
    encode_record,
    version_mark,
)
from bul.cache.tiers.shared.servers import Servers
from bul.clock import Clock, SystemClock
from bul.errors import TierUnavailable

__all__ = ["ACL", "SENTINEL_ACL", "SharedTier"]

ACL: Final = (
    "~bul:* +get +mget +set +eval +getrange +strlen +exists +unlink +pexpireat +scan "
    "+dbsize +info +echo +ping +select +cluster|slots +readonly"
)
"""What a server's user for BUL may do, in the words of ACL SETUSER."""
SENTINEL_ACL: Final = "+sentinel|masters +sentinel|slaves +ping"
"""And on a sentinel."""

STATS_NAMES_MAX: Final = 1024
"""Up to so many names `stats` counts this identity's own; beyond, the whole database."""
SCAN_COUNT: Final = 512
TOMBSTONE_MS: Final = 3_600_000
"""How long a deleted value's version is remembered: longer than any write can be late."""

_COUNTERS: Final = (
    "hits_total",
    "misses_total",
    "set_blocks_total",
    "repeated_blocks_total",
    "dropped_blocks_total",
    "deleted_blocks_total",
    "corrupted_total",
    "unanswered_total",
    "read_bytes_total",
    "written_bytes_total",
)


class SharedTier:
    """A `Tier`; any number of processes and hosts may use the same servers. Owns `servers`."""

    name = "shared"

    def __init__(
        self,
        servers: Servers,
        identity: Identity | bytes,
        *,
        compression: str = "none",
        clock: Clock | None = None,
    ) -> None:
        self._identity = identity if isinstance(identity, bytes) else identity.digest()
        assert len(self._identity) == KEY_BYTES, len(self._identity)
        self._servers = servers
        self._compression = compression
        self._clock: Clock = clock or SystemClock()
        self._prefix = b"bul:" + self._identity[:8].hex().encode() + b":"
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(_COUNTERS, 0)
        self._closed = False

    # -- the contract ----------------------------------------------------------------------

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are there now; one round trip."""
        if not keys:
            return 0
        self._refuse_if_closed()
        there = self._exist([self._name(own_key(key)) for key in keys])
        return next((i for i, here in enumerate(there) if not here), len(keys))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """Verified payloads as read-only views. What is damaged is taken out.

        Raises TierUnavailable also when all that came was damaged: then the server, or the way to
        it, lies, and the breaker must hear of it.
        """
        if not keys:
            return []
        self._refuse_if_closed()
        own = [own_key(key) for key in keys]
        names = [self._name(key) for key in own]
        now_s = self._clock.wall_s()
        found: list[Buffer | None] = []
        damaged: list[bytes] = []
        read_bytes = unanswered = 0
        for key, name, reply in zip(own, names, self._fetch(names), strict=True):
            block: Buffer | None = None
            if isinstance(reply, bytes):
                try:
                    block = decode_record(reply, key, self._identity, now_s)
                except Damaged:
                    damaged.append(name)
                read_bytes += len(reply)
            elif reply is not None:
                unanswered += 1
            found.append(block)
        hits = sum(block is not None for block in found)
        self._count(
            hits_total=hits,
            misses_total=len(found) - hits,
            read_bytes_total=read_bytes,
            corrupted_total=len(damaged),
            unanswered_total=unanswered,
        )
        if damaged:
            self._take_out(damaged)
            if not hits:
                raise TierUnavailable(f"all {len(damaged)} records that came were damaged")
        return found

    def set(self, records: Sequence[BlockRecord]) -> int:
        """Store what is not there; returns how many are there now."""
        if not records:
            return 0
        self._refuse_if_closed()
        there = self._exist([self._name(own_key(record.key)) for record in records])
        here = [r for r, is_here in zip(records, there, strict=True) if is_here and r.tokens]
        missing = [
            r for r, is_here in zip(records, there, strict=True) if not (is_here and r.tokens)
        ]
        writes = [command for record in missing if (command := self._write(record)) is not None]
        prolonged = [self._prolong(record) for record in here if record.expires_wall_s]
        replies = self._ask_tails_first([*writes, *prolonged], reading=False)[: len(writes)]
        written = sum(map(_is_done, replies))
        self._count(
            repeated_blocks_total=len(here),
            set_blocks_total=written,
            dropped_blocks_total=len(missing) - written,
            written_bytes_total=sum(map(_size, writes)),
        )
        if writes and not written:
            raise TierUnavailable(f"the shared cache takes nothing: {replies[0]}")
        return len(here) + written

    def delete(self, keys: Sequence[bytes]) -> int:
        """UNLINK."""
        if not keys:
            return 0
        self._refuse_if_closed()
        names = [self._name(own_key(key)) for key in keys]
        replies = self._servers.ask([("UNLINK", name) for name in names], reading=False)
        deleted = sum(int(reply) for reply in replies if isinstance(reply, int))
        self._count(deleted_blocks_total=deleted)
        return deleted

    def delete_values(self, keys: Sequence[bytes], version: int) -> int:
        """Leave a tombstone for each general value that is older; how many were there."""
        self._refuse_if_closed()
        mark = version_mark(version)
        commands: list[Command] = [
            ("EVAL", DELETE_VALUE, 1, self._name(own_key(key)), mark, TOMBSTONE_MS) for key in keys
        ]
        replies = self._servers.ask(commands, reading=False)
        deleted = sum(int(reply) for reply in replies if isinstance(reply, int))
        self._count(deleted_blocks_total=deleted)
        return deleted

    def clear(self) -> None:
        """UNLINK all names of this identity, found by SCAN."""
        self._refuse_if_closed()
        for node, names in self._scan():
            self._servers.ask_node(node, *[("UNLINK", name) for name in names])

    def probe(self) -> None:
        """Ask for a sign of life. Raises TierUnavailable."""
        mark = self._identity
        for _, reply in self._servers.ask_primaries(("ECHO", mark)):
            if reply == mark:
                return
        raise TierUnavailable("the shared cache does not answer as it should")

    def stats(self) -> Mapping[str, float]:
        """Counters of this process. blocks, bytes: of this identity while the database holds at
        most STATS_NAMES_MAX names, beyond that of the whole database as the server counts them.
        """
        with self._lock:
            totals = {name: float(total) for name, total in self._totals.items()}
        totals["server_failures_total"] = float(self._servers.failures_total)
        totals["topology_refreshes_total"] = float(self._servers.refreshes_total)
        with contextlib.suppress(TierUnavailable):
            totals |= self._gauges()
        return totals

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read every record of this identity; with `fix`, take the damaged ones out."""
        self._refuse_if_closed()
        blocks = size = 0
        problems: list[str] = []
        now_s = self._clock.wall_s()
        for node, names in self._scan():
            for name, reply in zip(
                names, self._servers.ask_node(node, *[("GET", n) for n in names]), strict=True
            ):
                if not isinstance(reply, bytes) or len(reply) == MARK_BYTES:
                    continue
                blocks, size = blocks + 1, size + len(reply)
                try:
                    key = bytes.fromhex(name[len(self._prefix) :].decode())
                    decode_record(reply, key, self._identity, now_s)
                except (Damaged, ValueError):
                    problems.append(f"{name.decode(errors='replace')} is damaged")
                    if fix:
                        self._take_out([name])
        return CheckReport(blocks=blocks, bytes=size, problems=tuple(problems))

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        self._servers.close()

    # -- how -------------------------------------------------------------------------------

    def _name(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    def _exist(self, names: Sequence[bytes]) -> list[bool]:
        if not self._servers.spread:
            # One count for all of them: most chains are there as a whole, or not at all.
            [count] = self._servers.ask([("EXISTS", *names)], reading=True)
            if count in (0, len(names)):
                return [bool(count)] * len(names)
        replies = self._servers.ask([("EXISTS", name) for name in names], reading=True)
        return [reply == 1 for reply in replies]

    def _fetch(self, names: Sequence[bytes]) -> list[Reply]:
        """Replies in the order of `names`, asked for from the last to the first."""
        if self._servers.spread:
            return self._ask_tails_first([("GET", name) for name in names], reading=True)
        [reply] = self._servers.ask([("MGET", *names[::-1])], reading=True)
        if not isinstance(reply, list) or len(reply) != len(names):
            raise TierUnavailable(f"the shared cache answered MGET with {type(reply).__name__}")
        return reply[::-1]

    def _ask_tails_first(self, commands: Sequence[Command], *, reading: bool) -> list[Reply]:
        return self._servers.ask(commands[::-1], reading=reading)[::-1] if commands else []

    def _write(self, record: BlockRecord) -> Command | None:
        """The command that stores it; `None` if it is larger than a server takes."""
        key = own_key(record.key)
        data = encode_record(record, key, self._identity, self._compression)
        if len(data) > RECORD_BYTES_MAX:
            return None
        expires_ms = int(record.expires_wall_s * 1000)
        if record.version:
            return ("EVAL", SET_VALUE, 1, self._name(key), data, expires_ms)
        expiry = ("PXAT", expires_ms) if expires_ms else ()
        return ("SET", self._name(key), data, *expiry)

    def _prolong(self, record: BlockRecord) -> Command:
        """A repeat makes a life longer, never shorter."""
        name = self._name(own_key(record.key))
        return ("PEXPIREAT", name, int(record.expires_wall_s * 1000), "GT")

    def _take_out(self, names: Sequence[bytes]) -> None:
        with contextlib.suppress(TierUnavailable):
            self._servers.ask([("UNLINK", name) for name in names], reading=False)

    def _scan(self) -> Iterator[tuple[Node, list[bytes]]]:
        """Names of this identity, some at a time, with the server that has them."""
        pattern = self._prefix + b"*"
        for node, first in self._servers.ask_primaries(_scan_command(b"0", pattern)):
            reply = first
            while True:
                if not isinstance(reply, list) or len(reply) != 2:
                    raise TierUnavailable(f"the shared cache answered SCAN with {reply!r:.80}")
                cursor, names = reply
                if names:
                    yield node, names
                if cursor == b"0":
                    break
                [reply] = self._servers.ask_node(node, _scan_command(cursor, pattern))

    def _gauges(self) -> Mapping[str, float]:
        sizes = self._servers.ask_primaries(("DBSIZE",))
        names = sum(reply for _, reply in sizes if isinstance(reply, int))
        memory = [_memory(reply) for _, reply in self._servers.ask_primaries(("INFO", "memory"))]
        gauges = {
            "blocks": float(names),
            "bytes": sum(one.get("used_memory_dataset", 0.0) for one in memory),
            "bytes_max": sum(one.get("maxmemory", 0.0) for one in memory),
        }
        if names <= STATS_NAMES_MAX:
            lengths = [
                length
                for node, found in self._scan()
                for length in self._servers.ask_node(node, *[("STRLEN", n) for n in found])
                if isinstance(length, int) and length > MARK_BYTES
            ]
            gauges |= {"blocks": float(len(lengths)), "bytes": float(sum(lengths))}
        return gauges

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._totals[name] += count

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise TierUnavailable("the shared tier is closed")


def _is_done(reply: Reply) -> bool:
    """SET says OK, a script a number."""
    return isinstance(reply, int) or bool(reply == b"OK")


def _size(command: Command) -> int:
    """Of the record in a SET or an EVAL of SET_VALUE."""
    data = command[4] if command[0] == "EVAL" else command[2]
    assert isinstance(data, bytes)
    return len(data)


def _scan_command(cursor: bytes, pattern: bytes) -> Command:
    return ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)


def _memory(reply: Reply) -> Mapping[str, float]:
    """The numbers of INFO memory; nothing if it is forbidden or nonsense."""
    found: dict[str, float] = {}
    for line in reply.split() if isinstance(reply, bytes) else ():
        name, _, number = line.partition(b":")
        if number.isdigit():
            found[name.decode(errors="replace")] = float(number)
    return found
