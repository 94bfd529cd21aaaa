"""Model cores for tests of the runner, both over the timed engine.

`RecordingCore` writes its calls down and fails where it is told to; `ScriptedCore` says what it is
told to, so that text handling is tested with bytes no real model would give on demand.
"""

from __future__ import annotations

from collections.abc import Sequence

from bul.blocks.prefix import Buffer
from bul.config import ServeConfig, TimedConfig
from bul.inference.contract import Sampling
from bul.inference.timed import TimedCore

__all__ = ["RecordingCore", "ScriptedCore"]

_INSTANT = TimedConfig(time_scale=0.0, block_bytes=256)
_SCRIPT_FIRST = 0x9000_0000


class RecordingCore(TimedCore):
    """`calls` lists (name, detail); a name in `fail_next` makes the next such call raise, once."""

    def __init__(self, serve: ServeConfig, timed: TimedConfig = _INSTANT) -> None:
        super().__init__(serve, timed)
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.fail_next: set[str] = set()
        self.closed = False

    def clear(self, slot: int) -> None:
        self._called("clear", slot)
        super().clear(slot)

    def prefill(self, slot: int, tokens: Sequence[int], position: int) -> None:
        self._called("prefill", slot, position, len(tokens))
        super().prefill(slot, tokens, position)

    def decode(self, steps: Sequence[tuple[int, int, int]]) -> None:
        self._called("decode", *sorted(slot for slot, _, _ in steps))
        super().decode(steps)

    def import_blocks(self, slot: int, blocks: Sequence[Buffer], tokens: Sequence[int]) -> None:
        self._called("import_blocks", slot, len(blocks))
        super().import_blocks(slot, blocks, tokens)

    def export_blocks(self, slot: int, first: int, last: int) -> list[bytes]:
        self._called("export_blocks", slot, first, last)
        return super().export_blocks(slot, first, last)

    def sample(self, slot: int) -> int:
        self._called("sample", slot)
        return super().sample(slot)

    def close(self) -> None:
        self._called("close")
        self.closed = True
        super().close()

    def named(self, name: str) -> list[tuple[int, ...]]:
        """The details of the calls of that name, in order."""
        return [detail for called, detail in self.calls if called == name]

    def _called(self, name: str, *detail: int) -> None:
        self.calls.append((name, detail))
        if name in self.fail_next:
            self.fail_next.remove(name)
            raise RuntimeError(f"{name} was told to fail")


class ScriptedCore(TimedCore):
    """Every reply is `script`, one token per item; then the end token."""

    def __init__(self, script: Sequence[bytes], serve: ServeConfig | None = None) -> None:
        super().__init__(serve or ServeConfig(), _INSTANT)
        self._script = tuple(script)
        self._said = [0] * self.slots

    def start_sampling(self, slot: int, sampling: Sampling, drawn: int = 0) -> None:
        self._said[slot] = 0
        super().start_sampling(slot, sampling)

    def sample(self, slot: int) -> int:
        said = self._said[slot]
        self._said[slot] += 1
        return _SCRIPT_FIRST + said

    def token_bytes(self, token: int) -> bytes:
        said = token - _SCRIPT_FIRST
        return self._script[said] if 0 <= said < len(self._script) else b""

    def is_end(self, token: int) -> bool:
        return token - _SCRIPT_FIRST >= len(self._script)
