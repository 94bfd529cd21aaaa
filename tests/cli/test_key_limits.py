"""`[keys]` may say how much of the service each key gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bul.config import KeyLimits, load_settings
from bul.errors import ConfigError

HASH = "ab" * 32


def _load(tmp_path: Path, text: str) -> tuple[dict[str, str], dict[str, KeyLimits]]:
    path = tmp_path / "bul.toml"
    path.write_text(text)
    settings = load_settings(path, {})
    return dict(settings.keys), dict(settings.key_limits)


def test_a_key_is_a_hash_or_a_hash_with_limits_or_limits_alone(tmp_path: Path) -> None:
    keys, limits = _load(
        tmp_path,
        f"""
        [keys]
        alice = "{HASH}"
        bob = {{ sha256 = "{HASH}", requests_per_minute = 60, tokens_per_minute = 20000 }}
        nightly = {{ priority = "batch", share = 0.5 }}
        """,
    )
    assert keys == {"alice": HASH, "bob": HASH}
    assert limits == {
        "bob": KeyLimits(requests_per_minute=60, tokens_per_minute=20000),
        "nightly": KeyLimits(priority="batch", share=0.5),
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a = { sha256 = 'x' }", "a must be 64 hex digits"),
        ("a = { tokens_per_hour = 3 }", "'tokens_per_hour'; known are sha256, requests_per_minute"),
        ("a = { tokens_per_minute = -1 }", r"a: tokens_per_minute must be in \[0"),
        ("a = { priority = 'urgent' }", "priority must be one of interactive, batch, prefetch"),
        ("a = { share = 0 }", "share must be in"),
    ],
)
def test_what_means_nothing_is_refused_by_name(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _load(tmp_path, f"[keys]\n{line}\n")
