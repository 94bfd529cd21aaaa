"""One frozen dataclass per section of `bul.toml`, checked at birth.

Refuses values out of range with a message that names the field and the legal range; where a
value came from is the loader's business (`load.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from bul.config.checks import header_name as _header_name
from bul.config.checks import in_range as _in_range
from bul.config.checks import one_of as _one_of
from bul.config.checks import whole as _whole
from bul.config.machine import this_machine
from bul.config.shared_url import parse_shared_url
from bul.config.sizing import sizes_for
from bul.errors import ConfigError

__all__ = [
    "EVICTION_POLICIES",
    "KVCacheConfig",
    "RouteConfig",
    "ServeConfig",
    "TimedConfig",
    "UpConfig",
]

MIB = 1 << 20
GIB = 1 << 30
BLOCK_TOKENS = 64
RANKS_MAX = 1024
BUILTIN_TOKEN_BYTES = 23_040
"""Of KV of the built-in model: 30 layers x K and V x 384 bytes."""


def _positive(name: str, value: int) -> int:
    _whole(name, value, 1, 1 << 60)
    return value


EVICTION_POLICIES = ("adaptive", "lru", "fifo", "lfu", "arc", "s3fifo", "lecar")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KVCacheConfig:
    """`[cache]`: the KV cache engine. The guide's fields keep the guide's names.

    max_tokens: RAM tier, in tokens of KV. ram_bytes_max: the same tier in bytes; whichever is
    reached first. prefetch_size: blocks loaded ahead along a chain. num_workers: I/O threads.
    prefetch_bytes_per_s_max: for blocks that nobody asked for yet; 0 loads none of them.
    distributed_backend: "gloo" or "nccl"; valid anywhere, checked when the engine starts.
    persistence_dir: the disk tier's folder, shared by the replicas of a host.
    cache_generated: also keep KV made while decoding (DESIGN: may differ in float noise).
    claim_age_s_max: how long others wait, without seeing progress, for a request that computes a
    block they need too; then one of them computes it.
    shared_url: a Valkey or Redis for several hosts (`shared_url.py`); shared_timeout_s: of a
    connection to it, and of its silence; shared_*_file: PEM files for TLS.
    distributed_ranks: host:port of every rank, in the same order everywhere; this one is number
    distributed_rank. distributed_bytes_max: that it keeps for all. distributed_timeout_s: of a
    connection to a rank, and of its silence. distributed_secret: what ranks prove to each other.
    """

    max_tokens: int = 262_144
    block_tokens: int = BLOCK_TOKENS
    ram_bytes_max: int = 4 * GIB
    eviction: str = "adaptive"
    seed: int = 0
    enable_prefetch: bool = True
    prefetch_size: int = 16
    prefetch_bytes_per_s_max: int = 256 * MIB
    enable_persistence: bool = False
    persistence_dir: str = ""
    disk_bytes_max: int = 16 * GIB
    fsync: Literal["none", "interval", "always"] = "interval"
    fsync_interval_s: float = 5.0
    tier_deadline_s: float = 2.0
    write_queue_bytes_max: int = 256 * MIB
    num_workers: int = 4
    enable_distributed: bool = False
    distributed_backend: Literal["gloo", "nccl"] = "gloo"
    ttl_s: float = 0.0
    tenant_share_max: float = 1.0
    quantisation: Literal["none", "int8"] = "none"
    compression: Literal["none", "lz4", "zstd"] = "none"
    break_even: bool = True
    cache_generated: bool = False
    claim_age_s_max: float = 60.0
    shared_url: str = ""
    shared_timeout_s: float = 0.25
    shared_ca_file: str = ""
    shared_cert_file: str = ""
    shared_key_file: str = ""
    distributed_rank: int = 0
    distributed_ranks: tuple[str, ...] = ()
    distributed_bytes_max: int = GIB
    distributed_timeout_s: float = 0.25
    distributed_secret: str = ""

    def __post_init__(self) -> None:
        _whole("block_tokens", self.block_tokens, 1, 4096)
        _whole("max_tokens", self.max_tokens, self.block_tokens, 1 << 40)
        _whole("ram_bytes_max", self.ram_bytes_max, MIB, 1 << 50)
        _one_of("eviction", self.eviction, EVICTION_POLICIES)
        _whole("prefetch_size", self.prefetch_size, 0, 4096)
        _whole("prefetch_bytes_per_s_max", self.prefetch_bytes_per_s_max, 0, 1 << 40)
        _whole("disk_bytes_max", self.disk_bytes_max, MIB, 1 << 60)
        _one_of("fsync", self.fsync, ("none", "interval", "always"))
        _in_range("fsync_interval_s", self.fsync_interval_s, 0.01, 3600)
        _in_range("tier_deadline_s", self.tier_deadline_s, 0.001, 600)
        _whole("write_queue_bytes_max", self.write_queue_bytes_max, MIB, 1 << 40)
        _whole("num_workers", self.num_workers, 1, 1024)
        _one_of("distributed_backend", self.distributed_backend, ("gloo", "nccl"))
        _in_range("ttl_s", self.ttl_s, 0, 10 * 365 * 86400)
        _in_range("tenant_share_max", self.tenant_share_max, 0.001, 1.0)
        _one_of("quantisation", self.quantisation, ("none", "int8"))
        _one_of("compression", self.compression, ("none", "lz4", "zstd"))
        _in_range("claim_age_s_max", self.claim_age_s_max, 0.01, 3600)
        if self.shared_url:
            parse_shared_url(self.shared_url)
        _in_range("shared_timeout_s", self.shared_timeout_s, 0.001, 60)
        _whole("distributed_rank", self.distributed_rank, 0, RANKS_MAX - 1)
        if len(self.distributed_ranks) > RANKS_MAX:
            raise ConfigError(f"distributed_ranks may name {RANKS_MAX} ranks")
        _whole("distributed_bytes_max", self.distributed_bytes_max, MIB, 1 << 50)
        _in_range("distributed_timeout_s", self.distributed_timeout_s, 0.001, 60)

    @classmethod
    def for_machine(
        cls,
        *,
        ram_bytes: int | None = None,
        cores: int | None = None,
        disk_free_bytes: int | None = None,
        token_bytes: int = BUILTIN_TOKEN_BYTES,
        replicas: int = 1,
        **fields: Any,
    ) -> KVCacheConfig:
        """Sized for a machine that is there for this: vertical scaling (`sizing.py` has the rule).

        What is left out is read from this machine. token_bytes: of KV, one token in all layers;
        the model's block bytes over its block tokens. replicas: that share the machine. fields:
        of this class, and stronger than the rule. Raises ConfigError.
        """
        folder = Path(str(fields.get("persistence_dir") or "."))
        here = this_machine(folder, replicas=_positive("replicas", replicas))
        machine = dataclasses.replace(
            here,
            ram_bytes=_positive("ram_bytes", here.ram_bytes if ram_bytes is None else ram_bytes),
            cores=_positive("cores", here.cores if cores is None else cores),
            disk_free_bytes=here.disk_free_bytes if disk_free_bytes is None else disk_free_bytes,
        )
        block_tokens = _positive("block_tokens", fields.get("block_tokens", BLOCK_TOKENS))
        sizes = sizes_for(
            machine, token_bytes=_positive("token_bytes", token_bytes), block_tokens=block_tokens
        )
        return cls(**(dataclasses.asdict(sizes) | fields))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """`[serve]`: one replica.

    model: path of a GGUF file, "" for the built-in one. slots: sequences in one batch.
    context_tokens: prompt plus output of one sequence. waiting_max: requests beyond the slots.
    stuck_after_s: without progress for this long, the engine's loop is unhealthy.
    cache_secret: region-wide secret from which tenant salts are derived.
    join: routers' URLs that this replica registers with, by the operator's key join_secret.
    advertise: the URL that it tells them; "" for the address it is bound to or reaches them from.
    """

    host: str = "127.0.0.1"
    port: int = 8002
    engine: Literal["embedded", "timed"] = "embedded"
    model: str = ""
    slots: int = 4
    context_tokens: int = 4096
    threads: int = 0
    waiting_max: int = 256
    request_deadline_s: float = 300.0
    drain_s: float = 30.0
    stuck_after_s: float = 30.0
    cache_secret: str = ""
    share_between_tenants: bool = False
    join: tuple[str, ...] = ()
    join_secret: str = ""
    advertise: str = ""

    def __post_init__(self) -> None:
        _whole("port", self.port, 0, 65535)
        _one_of("engine", self.engine, ("embedded", "timed"))
        _whole("slots", self.slots, 1, 256)
        _whole("context_tokens", self.context_tokens, 128, 1 << 20)
        _whole("threads", self.threads, 0, 1024)
        _whole("waiting_max", self.waiting_max, 0, 1 << 20)
        _in_range("request_deadline_s", self.request_deadline_s, 0.1, 86400)
        _in_range("drain_s", self.drain_s, 0, 3600)
        _in_range("stuck_after_s", self.stuck_after_s, 0.1, 3600)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TimedConfig:
    """`[timed]`: the rates of the timed engine, one of DESIGN's two engines.

    block_bytes: payload of one block. time_scale: 0.5 runs twice as fast.
    """

    prefill_tokens_per_s: float = 8000.0
    decode_tokens_per_s: float = 50.0
    block_bytes: int = 65536
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        _in_range("prefill_tokens_per_s", self.prefill_tokens_per_s, 1, 1e9)
        _in_range("decode_tokens_per_s", self.decode_tokens_per_s, 0.1, 1e9)
        _whole("block_bytes", self.block_bytes, 16, 1 << 30)
        _in_range("time_scale", self.time_scale, 0, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RouteConfig:
    """`[route]`: the router. replicas: URLs of a static list.

    response_timeout_s: a replica may be silent for this long. deep_probe_interval_s,
    deep_probe_timeout_s: between two probes that generate a token (0: none), and for that token.
    header_, body_ and idle_timeout_s: a client's time for a request's head, its body, and between
    two requests. retry_share: second tries per request of the last ten seconds, of which
    `retries_at_least` are always allowed.
    residency_tokens: how much KV a replica is believed to keep, by the policy `prefix`.
    hedge_delay_min_s: a prompt whose answer has not begun after this long, nor after twice the
    95th percentile of its kind, goes to a second replica too, within the same budget; 0: never.
    in_flight_max: requests under way at one replica, at most; in_flight_per_slot: of a replica
    that tells how many it batches (0: never mind). A 429, or a first byte later than
    first_byte_target_s (0: no target), lowers that replica's limit until its answers are good
    again. queue_max, queue_deadline_s: requests that wait for room, and for how long;
    fair: keys take turns by the tokens that they got, instead of first come, first served.
    session_header, session_cookie: where the policy `session` reads whose request it is. explain:
    log the scores of every decision. block_events: follow what replicas tell of their caches, with
    the key operator_secret if they ask for one. members: replicas may join by themselves, with the
    operator's key; one that is silent for member_ttl_s is out. discover: URLs whose host's name
    stands for as many replicas as it has addresses, asked for again every discover_interval_s.
    resume_streams: a stream whose replica dies or falls silent goes on at another one.
    resume_secret: shared by the region's routers and replicas, seals a stream's resumption on
    another replica; "" takes serve.cache_secret, and `bul up` makes one up.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    policy: Literal["round_robin", "least_conn", "prefix", "session"] = "prefix"
    session_header: str = "x-session-id"
    session_cookie: str = "bul-session"
    explain: bool = False
    block_events: bool = True
    operator_secret: str = ""
    members: bool = False
    members_max: int = 64
    member_ttl_s: float = 5.0
    discover: tuple[str, ...] = ()
    discover_interval_s: float = 2.0
    replicas: tuple[str, ...] = ()
    connect_timeout_s: float = 1.0
    response_timeout_s: float = 300.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    connections_max: int = 10_000
    probe_interval_s: float = 0.5
    probe_timeout_s: float = 1.0
    deep_probe_interval_s: float = 30.0
    deep_probe_timeout_s: float = 60.0
    retry_share: float = 0.2
    retries_at_least: int = 10
    hedge_delay_min_s: float = 0.25
    residency_tokens: int = 262_144
    in_flight_max: int = 256
    in_flight_per_slot: float = 2.0
    first_byte_target_s: float = 0.0
    queue_max: int = 1024
    fair: bool = True
    queue_deadline_s: float = 10.0
    drain_s: float = 30.0
    resume_streams: bool = True
    resume_secret: str = ""

    def __post_init__(self) -> None:
        _whole("port", self.port, 0, 65535)
        _one_of("policy", self.policy, ("round_robin", "least_conn", "prefix", "session"))
        _whole("members_max", self.members_max, 1, 10_000)
        _in_range("member_ttl_s", self.member_ttl_s, 0.2, 3600)
        _in_range("discover_interval_s", self.discover_interval_s, 0.05, 3600)
        _header_name("session_header", self.session_header)
        _header_name("session_cookie", self.session_cookie)
        _in_range("connect_timeout_s", self.connect_timeout_s, 0.01, 60)
        _in_range("response_timeout_s", self.response_timeout_s, 0.1, 86400)
        _in_range("header_timeout_s", self.header_timeout_s, 0.1, 600)
        _in_range("body_timeout_s", self.body_timeout_s, 0.1, 3600)
        _in_range("idle_timeout_s", self.idle_timeout_s, 0.1, 3600)
        _whole("connections_max", self.connections_max, 1, 1_000_000)
        _in_range("probe_interval_s", self.probe_interval_s, 0.01, 60)
        _in_range("probe_timeout_s", self.probe_timeout_s, 0.01, 60)
        _in_range("deep_probe_interval_s", self.deep_probe_interval_s, 0, 86400)
        _in_range("deep_probe_timeout_s", self.deep_probe_timeout_s, 0.01, 3600)
        _in_range("retry_share", self.retry_share, 0, 1)
        _whole("retries_at_least", self.retries_at_least, 0, 1_000_000)
        _in_range("hedge_delay_min_s", self.hedge_delay_min_s, 0, 3600)
        _whole("residency_tokens", self.residency_tokens, 0, 1 << 32)
        _whole("in_flight_max", self.in_flight_max, 1, 1_000_000)
        _in_range("in_flight_per_slot", self.in_flight_per_slot, 0, 1024)
        _in_range("first_byte_target_s", self.first_byte_target_s, 0, 3600)
        _whole("queue_max", self.queue_max, 0, 1_000_000)
        _in_range("queue_deadline_s", self.queue_deadline_s, 0.05, 3600)
        _in_range("drain_s", self.drain_s, 0, 3600)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UpConfig:
    """`[up]`: a region on this machine. state_dir: its only folder; "" for `.bul` here.

    driver: what starts and stops replicas; all but "process" have a section of their own.

    shared: start a Valkey of its own, of shared_bytes_max, for cache.shared_url.
    """

    driver: Literal["process", "compose", "kubernetes", "ray"] = "process"
    replicas: int = 2
    replicas_max: int = 10
    state_dir: str = ""
    shared: bool = False
    shared_bytes_max: int = GIB
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        _one_of("driver", self.driver, ("process", "compose", "kubernetes", "ray"))
        _whole("replicas_max", self.replicas_max, 1, 1000)
        _whole("replicas", self.replicas, 1, self.replicas_max)
        _whole("shared_bytes_max", self.shared_bytes_max, 16 * MIB, 1 << 50)
        _one_of("log_format", self.log_format, ("text", "json"))
