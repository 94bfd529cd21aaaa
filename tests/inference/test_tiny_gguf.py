from __future__ import annotations

from pathlib import Path

from bul.testing.tiny_gguf import write_tiny_gguf


def test_equal_seeds_give_equal_files_and_other_seeds_others(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "a", seed=1).read_bytes()
    again = write_tiny_gguf(tmp_path / "b", seed=1).read_bytes()
    other = write_tiny_gguf(tmp_path / "c", seed=2).read_bytes()
    assert first == again
    assert first != other
    assert len(first) == len(other) < 2_000_000
