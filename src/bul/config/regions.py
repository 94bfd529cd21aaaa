"""`[regions]`: this region's name, the others' addresses, and how the news between them travel.

Refuses values out of range with a message that names the field and the legal range.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from bul.config.checks import in_range, whole
from bul.errors import ConfigError

__all__ = ["RegionsConfig"]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
URL = re.compile(r"https?://[^\s/]+/?")
SECRET_CHARS_MIN = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RegionsConfig:
    """`[regions]`: off while it has no name.

    peers: "NAME=URL" of every other region, the only ones that are ever spoken to. peer_secret:
    the same in all regions, 32 characters at least; what they prove to each other. host, port:
    where the others reach this one. deadline_s: for blocks asked of others. compare_interval_s:
    between two comparisons with each. rate_bytes_per_s: to each, 0 for no cap. queue_keys_max: news
    that wait for one region. entries_max, graves_max, horizon_s: what is remembered of blocks, of
    deletes, and for how long. warm_blocks: fetched first, hottest first, by a region without any.
    world: `bul up` runs all of these here, joined by links of wan_rtt_ms.
    """

    name: str = ""
    peers: tuple[str, ...] = ()
    peer_secret: str = ""
    host: str = "127.0.0.1"
    port: int = 8010
    deadline_s: float = 0.5
    compare_interval_s: float = 30.0
    rate_bytes_per_s: float = 0.0
    queue_keys_max: int = 65_536
    entries_max: int = 262_144
    graves_max: int = 65_536
    horizon_s: float = 7 * 86_400.0
    warm_blocks: int = 4096
    world: tuple[str, ...] = ()
    wan_rtt_ms: float = 80.0

    def __post_init__(self) -> None:
        for name in (self.name, *self.world):
            _check_name(name)
        urls = self.peer_urls
        if self.name and self.name in urls:
            raise ConfigError(f"peers must not name this region, {self.name!r}")
        if self.peer_secret and len(self.peer_secret) < SECRET_CHARS_MIN:
            raise ConfigError(f"peer_secret must have {SECRET_CHARS_MIN} characters at least")
        whole("port", self.port, 0, 65535)
        in_range("deadline_s", self.deadline_s, 0.01, 60)
        in_range("compare_interval_s", self.compare_interval_s, 0.05, 86_400)
        in_range("rate_bytes_per_s", self.rate_bytes_per_s, 0, 1e12)
        whole("queue_keys_max", self.queue_keys_max, 16, 1 << 24)
        whole("entries_max", self.entries_max, 16, 1 << 24)
        whole("graves_max", self.graves_max, 16, 1 << 24)
        in_range("horizon_s", self.horizon_s, 60, 10 * 365 * 86_400)
        whole("warm_blocks", self.warm_blocks, 0, 65_536)
        in_range("wan_rtt_ms", self.wan_rtt_ms, 0, 10_000)
        if len(set(self.world)) != len(self.world):
            raise ConfigError("world must not name a region twice")

    @property
    def peer_urls(self) -> Mapping[str, str]:
        """The others by name. Raises ConfigError."""
        found: dict[str, str] = {}
        for text in self.peers:
            name, equals, url = text.partition("=")
            if not (equals and name and URL.fullmatch(url)) or name in found:
                raise ConfigError(f"peers must be NAME=http://HOST:PORT, each once, was {text!r}")
            _check_name(name)
            found[name] = url.rstrip("/")
        return found


def _check_name(name: str) -> None:
    if name and not NAME.fullmatch(name):
        raise ConfigError(f"name of a region may hold a-z, 0-9 and -, was {name!r}")
