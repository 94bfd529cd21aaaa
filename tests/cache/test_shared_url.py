"""Addresses of shared caches: what is accepted, what is refused, and that no password shows."""

from __future__ import annotations

import pytest

from bul.config import KVCacheConfig, is_secret
from bul.config.shared_url import SharedAddress, parse_shared_url
from bul.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", SharedAddress(nodes=(("h", 6379),))),
        ("redis://[::1]:7/3", SharedAddress(nodes=(("::1", 7),), database=3)),
        (
            "rediss://u:p%40@h:7000",
            SharedAddress(nodes=(("h", 7000),), tls=True, username="u", password="p@"),
        ),
        ("unix:///run/v.sock?db=2", SharedAddress(path="/run/v.sock", database=2)),
        ("unix://:pw@/run/v", SharedAddress(path="/run/v", password="pw")),
        (
            "redis+sentinel://a:1,b/main/2",
            SharedAddress(
                kind="sentinel", nodes=(("a", 1), ("b", 26379)), service="main", database=2
            ),
        ),
        (
            "rediss+cluster://a,b:7000",
            SharedAddress(kind="cluster", nodes=(("a", 6379), ("b", 7000)), tls=True),
        ),
    ],
)
def test_an_address_is_read(url: str, address: SharedAddress) -> None:
    assert parse_shared_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "h:6379",
        "redis://",
        "redis://a,b",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:port",
        "redis://h/x",
        "redis://h/1/2",
        "unix://relative",
        "redis+sentinel://a",
        "redis+cluster://a/1",
    ],
)
def test_a_wrong_address_is_refused_at_birth(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^shared_url"):
        KVCacheConfig(shared_url=url)


@pytest.mark.security
def test_no_password_is_shown() -> None:
    address = parse_shared_url("redis://u:hunter2@h")
    assert "hunter2" not in repr(address) + address.shown
    with pytest.raises(ConfigError) as caught:
        parse_shared_url("redis://u:hunter2@h:port")
    assert "hunter2" not in str(caught.value)
    assert is_secret("cache.shared_url")
