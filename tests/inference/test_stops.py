"""Text that may be sent: whole characters, nothing of a stop string, for any cut into tokens."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from bul.inference.stops import TextStream

SMALL_TEXT = st.text(alphabet="abé€😀", max_size=24)
STOPS = st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=3)
CUTS = st.lists(st.integers(min_value=0, max_value=100), max_size=12)


def stream(pieces: Sequence[bytes], stops: Sequence[str]) -> tuple[list[str], bool]:
    text = TextStream(stops)
    sent = [text.push(piece) for piece in pieces]
    return [*sent, text.finish()], text.stopped


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def reference(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """One character at a time, and everything thought through again for each."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(text=SMALL_TEXT, stops=STOPS, cuts=CUTS)
def test_the_deltas_join_to_the_reference_for_any_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    sent, stopped = stream(pieces_of(text.encode(), cuts), stops)
    assert ("".join(sent), stopped) == reference(text, stops)


@given(text=SMALL_TEXT, stops=STOPS)
def test_whatever_comes_next_what_was_sent_was_right(text: str, stops: list[str]) -> None:
    stream_ = TextStream(stops)
    sent = "".join(stream_.push(character.encode()) for character in text)
    futures = [text, *(text + stop[start:] for stop in stops for start in range(len(stop)))]
    assert all(reference(future, stops)[0].startswith(sent) for future in futures)


@given(data=st.binary(max_size=32), cuts=CUTS)
def test_bytes_that_are_not_text_come_out_the_same_for_any_cut(
    data: bytes, cuts: list[int]
) -> None:
    sent, _ = stream(pieces_of(data, cuts), ())
    assert "".join(sent) == codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def test_a_character_in_four_tokens_is_sent_with_its_last() -> None:
    sent, _ = stream([bytes([byte]) for byte in "😀".encode()], ())
    assert sent == ["", "", "", "😀", ""]


def test_a_character_cut_off_by_the_end_is_dropped() -> None:
    assert stream([b"ok", "😀".encode()[:3]], ())[0] == ["ok", "", ""]


def test_a_partial_stop_string_is_held_back_and_sent_at_the_end() -> None:
    assert stream([b"one ", b"EN"], ("END",))[0] == ["one ", "", "EN"]


def test_a_partial_stop_string_that_goes_another_way_is_sent_with_what_follows() -> None:
    assert stream([b"E", b"N", b"E", b"ND!"], ("END",)) == (["", "", "EN", "", ""], True)


def test_of_two_stop_strings_that_end_together_the_longer_wins() -> None:
    assert stream([b"xabc"], ("c", "abc")) == (["x", ""], True)


def test_of_two_stop_strings_the_one_that_ends_first_wins() -> None:
    assert stream([b"abcd"], ("abcd", "bc")) == (["a", ""], True)


def test_nothing_comes_after_a_stop() -> None:
    text = TextStream(("b",))
    assert [text.push(b"ab"), text.push(b"more"), text.finish()] == ["a", "", ""]


def test_an_empty_stop_string_stops_nothing() -> None:
    assert stream([b"abc"], ("",)) == (["abc", ""], False)
