"""The timed engine: deterministic text and real block bytes at configurable rates, without a model.

Refuses to hide a fault: the text is a hash of everything in the slot, and an imported block that
is not the one its tokens stand for is counted (`wrong_blocks`) and changes every later word.

Volume and faults are tested on it, correctness on the real engine. What it imitates:

    a slot    a chain of block digests, H(parent, 64 tokens), plus the tokens of the open block
    a block   `block_bytes` incompressible bytes grown from its digest, so whoever holds the
              tokens can tell the right bytes from any others
    a word    picked by H(sampling, last digest, open tokens): a wrong prefix shows in the text
    time      prefill costs tokens / prefill_tokens_per_s, a decode step costs
              1 / decode_tokens_per_s whatever the batch; both sleep, which releases the GIL

The tokenizer needs no vocabulary: four ASCII bytes are one token, their little-endian u32 (always
below 2**31); other bytes go up to three at a time with bit 31 set; control tokens are on top. No
token goes over the end of a line, so that text after a line leaves the tokens before it alone;
words are four characters long, so that a reply tokenises to the tokens that were generated.
"""

from __future__ import annotations

import re
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.identity import Identity
from bul.blocks.prefix import Buffer
from bul.clock import Clock, SystemClock
from bul.config import ServeConfig, TimedConfig
from bul.inference.contract import ChatMessage, Sampling

__all__ = ["TimedCore"]

_WORDS: Final = (
    "act air all and arm art ash ask bay bee big box boy bus can cap cat cup day deer dew dog dry "
    "ear egg elk elm end eye fan far fig fir fog fox fun gem hat hay hen hut ice ink ivy jam jar "
    "joy key kid lad leg log low map may mud net new oak oat old one our owl own pea pen pie pin"
)
_PIECES: Final = tuple(f"{word} ".encode() for word in _WORDS.split() if len(word) == 3)
_CONTROL_FIRST: Final = 0xFF00_0000
_CONTROLS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CONTROL_IDS: Final = {text: _CONTROL_FIRST + index for index, text in enumerate(_CONTROLS)}
_CONTROL_SPLIT: Final = re.compile("(" + "|".join(re.escape(text) for text in _CONTROLS) + ")")
_RUNS: Final = re.compile(rb"[\x00-\x09\x0b-\x7f]*\n|[\x00-\x09\x0b-\x7f]+|[\x80-\xff]+")
_RAW: Final = 0x8000_0000
_PIECE_IDS: Final[tuple[int, ...]] = struct.unpack(f"<{len(_PIECES)}I", b"".join(_PIECES))


def _raw_token(data: bytes) -> int:
    """One to three bytes as a token: bit 31, the length, the bytes."""
    return _RAW | len(data) << 24 | int.from_bytes(data, "little")


def _plain_tokens(text: str) -> list[int]:
    # A lone surrogate, which JSON can carry, has no UTF-8; it becomes "?" instead of an error.
    tokens: list[int] = []
    for run in _RUNS.findall(text.encode("utf-8", "replace")):
        ascii_quads = len(run) // 4 if run[0] < 0x80 else 0
        tokens.extend(struct.unpack_from(f"<{ascii_quads}I", run))
        rest = run[ascii_quads * 4 :]
        tokens.extend(_raw_token(rest[at : at + 3]) for at in range(0, len(rest), 3))
    return tokens


def _payload(digest: bytes, size: int) -> bytes:
    """`size` incompressible bytes that only this digest gives; about 25 us for 64 KiB."""
    generator = np.random.SFC64(int.from_bytes(digest[:16], "little"))
    return generator.random_raw((size + 7) // 8).astype("<u8").tobytes()[:size]


class _Slot:
    """One sequence: digests of its full blocks, tokens of the open one."""

    __slots__ = ("digests", "open", "sampling")

    def __init__(self) -> None:
        self.digests: list[bytes] = []
        self.open: list[int] = []
        self.sampling = b""


class TimedCore:
    """A `ModelCore` whose speed is set and whose text proves what was in the slot.

    It never samples an end token: a reply is as long as `max_tokens` or a stop string says, so
    that a load test decides the lengths. Not thread-safe but for the tokenizer.
    """

    engine_name = "timed"
    model_id = "bul-timed"

    def __init__(
        self,
        serve: ServeConfig,
        timed: TimedConfig,
        *,
        block_tokens: int = 64,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.slots = serve.slots
        self.context_tokens = serve.context_tokens
        self.block_tokens = block_tokens
        self.block_bytes = timed.block_bytes
        self.wrong_blocks = 0
        """Imported blocks that were not the ones their tokens stand for."""
        self.prefilled_tokens = 0
        self._timed = timed
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._overslept_s = 0.0
        self.identity = _identity(block_tokens, timed.block_bytes)
        self._root = chain_root(self.identity.digest(), b"timed-kv")
        self._slots = [_Slot() for _ in range(serve.slots)]

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids in [0, 2**32), about one per four ASCII characters; any text round-trips."""
        if not special:
            return _plain_tokens(text)
        tokens: list[int] = []
        for part in _CONTROL_SPLIT.split(text):
            control = _CONTROL_IDS.get(part)
            tokens.extend(_plain_tokens(part) if control is None else (control,))
        return tokens

    def tokenize_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """`render_chat` as tokens; control tokens spelled out in a content stay plain text."""
        start, end = _CONTROL_IDS["<|im_start|>"], _CONTROL_IDS["<|im_end|>"]
        tokens: list[int] = []
        for message in messages:
            tokens += [start, *_plain_tokens(f"{message.role}\n{message.content}")]
            tokens += [end, *_plain_tokens("\n")]
        return [*tokens, start, *_plain_tokens("assistant\n")]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without control tokens; the inverse of `tokenize`."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """ChatML, with the assistant's opening."""
        turns = (f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
        return "".join(turns) + "<|im_start|>assistant\n"

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; b"" for control tokens."""
        if token < _RAW:
            return token.to_bytes(4, "little")
        if token >= _CONTROL_FIRST:
            return b""
        size = token >> 24 & 0x03
        return (token & 0xFF_FFFF).to_bytes(3, "little")[:size]

    def is_end(self, token: int) -> bool:
        """Whether the token is a control token; none is ever sampled."""
        return token >= _CONTROL_FIRST

    def clear(self, slot: int) -> None:
        """Empty the slot."""
        self._slots[slot] = _Slot()

    def prefill(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """Append `tokens` at `position`, which must be where the slot ends."""
        started_s = self._clock.now_s()
        self._append(slot, tokens, position)
        self.prefilled_tokens += len(tokens)
        self._spend(len(tokens) / self._timed.prefill_tokens_per_s, started_s)

    def decode(self, steps: Sequence[tuple[int, int, int]]) -> None:
        """Append one token per step (slot, token, position); costs one step's time in all."""
        started_s = self._clock.now_s()
        for slot, token, position in steps:
            self._append(slot, (token,), position)
        self._spend(1 / self._timed.decode_tokens_per_s, started_s)

    def import_blocks(self, slot: int, blocks: Sequence[Buffer], tokens: Sequence[int]) -> None:
        """Fill the slot from `blocks`; any that is not its tokens' own changes what follows."""
        assert len(tokens) == len(blocks) * self.block_tokens, (len(tokens), len(blocks))
        self.clear(slot)
        digests = self._slots[slot].digests
        parent: bytes | None = None  # set by the first wrong block: nothing after it is right
        expected = block_keys(self._root, tokens, self.block_tokens)
        for digest, block in zip(expected, blocks, strict=True):
            payload = bytes(block)
            if payload != _payload(digest, self.block_bytes):
                self.wrong_blocks += 1
                parent = parent or b"wrong"
            if parent is not None:
                parent = blake2b(parent + payload, digest_size=32).digest()
            digests.append(digest if parent is None else parent)

    def export_blocks(self, slot: int, first: int, last: int) -> list[bytes]:
        """Payloads of the full blocks [first, last) of the slot."""
        digests = self._slots[slot].digests
        assert 0 <= first <= last <= len(digests), (first, last, len(digests))
        return [_payload(digest, self.block_bytes) for digest in digests[first:last]]

    def start_sampling(self, slot: int, sampling: Sampling, drawn: int = 0) -> None:
        """Greedy text ignores the seed; with a temperature, equal seeds give equal text. What is
        in the slot says how many were drawn.
        """
        chosen = b""
        if sampling.temperature > 0.0:
            seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
            chosen = f"{seed}/{sampling.temperature}/{sampling.top_p}".encode()
        self._slots[slot].sampling = blake2b(chosen, digest_size=32).digest()

    def sample(self, slot: int) -> int:
        """The word that the slot's whole content leads to."""
        state = self._slots[slot]
        parent = state.digests[-1] if state.digests else self._root
        open_tokens = struct.pack(f"<{len(state.open)}I", *state.open)
        choice = blake2b(state.sampling + parent + open_tokens, digest_size=8).digest()
        return _PIECE_IDS[int.from_bytes(choice, "little") % len(_PIECE_IDS)]

    def close(self) -> None:
        """Forget all slots."""
        self._slots = [_Slot() for _ in range(self.slots)]

    def _append(self, slot: int, tokens: Sequence[int], position: int) -> None:
        state = self._slots[slot]
        held = len(state.digests) * self.block_tokens + len(state.open)
        assert position == held, f"slot {slot} ends at {held}, not at {position}"
        assert position + len(tokens) <= self.context_tokens, (position, len(tokens))
        state.open.extend(tokens)
        parent = state.digests[-1] if state.digests else self._root
        full = block_keys(parent, state.open, self.block_tokens)
        state.digests.extend(full)
        del state.open[: len(full) * self.block_tokens]

    def _spend(self, work_s: float, started_s: float) -> None:
        """Sleep until `work_s` has passed since `started_s`, making up for oversleeping."""
        if self._timed.time_scale == 0.0:
            return
        due_s = started_s + work_s * self._timed.time_scale - self._overslept_s
        ahead_s = due_s - self._clock.now_s()
        if ahead_s > 0.0:
            self._sleep(ahead_s)
        # Only the sleep's own error carries over: a machine that is too slow shows as slow.
        self._overslept_s = min(0.005, max(0.0, self._clock.now_s() - due_s))


def _identity(block_tokens: int, block_bytes: int) -> Identity:
    """Rates are left out: they change when bytes are ready, not which bytes."""
    return Identity(
        weights="timed",
        tokenizer="quads-1",
        adapter="",
        kv_dtype="u8",
        layout=f"sfc64[{block_bytes}]",
        layers=1,
        row_bytes=block_bytes // block_tokens,
        block_tokens=block_tokens,
        rope="",
        engine="timed-1",
        instruction_set="",
        prefill_call_tokens=block_tokens,
        flash_attention="off",
    )
