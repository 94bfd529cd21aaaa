"""What regions say to each other: small msgpack documents, and blocks as verified records.

Refuses what is not exactly one message: lengths are bounded before anything is decoded, every field
has a type and a range, and a block counts only if its record's header and checksum vouch for it.

    body = u32: length of the document | document (msgpack) | records, one after the other
    record = header (192 bytes, `blocks/format.py`) | payload as sent
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from bul.blocks.format import (
    RECORD_HEADER_BYTES,
    BlockHeader,
    encode_record_header,
    parse_record_header,
    payload_checksum,
    payload_matches,
)
from bul.blocks.prefix import Buffer
from bul.cache.tiers.disk.codec import decode, encode
from bul.regions.catalogue import BUCKETS, Entry
from bul.regions.versions import Grave, GraveKind

__all__ = [
    "BODY_BYTES_MAX",
    "ITEMS_MAX",
    "PAYLOAD_BYTES_MAX",
    "Blocks",
    "Compare",
    "Differ",
    "Get",
    "Hot",
    "Item",
    "ListBuckets",
    "Listing",
    "MessageInvalid",
    "Offer",
    "Payload",
    "Ping",
    "Pong",
    "Stone",
    "Wanted",
    "entry_of",
    "grave_of",
    "hashes",
    "item_of",
    "numbers",
    "pack",
    "payloads",
    "record",
    "stone_of",
    "unpack",
]

BODY_BYTES_MAX: Final = 64 << 20
DOCUMENT_BYTES_MAX: Final = 16 << 20
ITEMS_MAX: Final = 65_536
PAYLOAD_BYTES_MAX: Final = 32 << 20
"""Of one block; the built-in model's is 1.5 MB."""
_PLACE: Final = int.from_bytes(b"BULpeers", "little")
"""Seeds the header's checksum: a record copied from a file or a Valkey does not parse here."""
_LENGTH: Final = struct.Struct("<I")

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
MaybeKey = Annotated[bytes, msgspec.Meta(max_length=32)]
Target = Annotated[bytes, msgspec.Meta(min_length=1, max_length=32)]
Version = Annotated[int, msgspec.Meta(ge=0)]
Checksum = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Name = Annotated[str, msgspec.Meta(max_length=8192)]
Short = Annotated[str, msgspec.Meta(max_length=64)]


class MessageInvalid(Exception):
    """Not a message, or not one of the kind that belongs here."""


class Item(msgspec.Struct, array_like=True, frozen=True):
    """An `Entry` on the wire. size: of the payload, uncompressed."""

    key: Key
    version: Version
    model: MaybeKey
    tenant: Annotated[bytes, msgspec.Meta(max_length=8)]
    parent: MaybeKey
    tokens: Annotated[int, msgspec.Meta(ge=0, le=65536)]
    size: Annotated[int, msgspec.Meta(ge=0, le=PAYLOAD_BYTES_MAX)]
    checksum: Checksum
    name: Name
    expires_wall_ms: Count


class Stone(msgspec.Struct, array_like=True, frozen=True):
    """A `Grave` on the wire."""

    kind: GraveKind
    target: Target
    version: Version


Items = Annotated[list[Item], msgspec.Meta(max_length=ITEMS_MAX)]
Stones = Annotated[list[Stone], msgspec.Meta(max_length=ITEMS_MAX)]
Hashes = Annotated[bytes, msgspec.Meta(max_length=8 << 20)]
"""Eight bytes each."""
Numbers = Annotated[list[int], msgspec.Meta(max_length=ITEMS_MAX)]


class Offer(msgspec.Struct, array_like=True, frozen=True):
    """I have these; this is dead. Answered by `Wanted`."""

    items: Items
    stones: Stones


class Wanted(msgspec.Struct, array_like=True, frozen=True):
    """Positions in the offer. stones: what you offered and is dead here."""

    positions: Numbers
    stones: Stones = []


class Blocks(msgspec.Struct, array_like=True, frozen=True):
    """items: one for each record that follows. gone: keys known, whose bytes are not here."""

    items: Items
    gone: list[Item] = []


class Compare(msgspec.Struct, array_like=True, frozen=True):
    """digests: of each bucket. The floors are of graves and of the catalogue."""

    digests: Hashes
    grave_floor: Version
    catalogue_floor: Version


class Differ(msgspec.Struct, array_like=True, frozen=True):
    """Answers `Compare`: floors to compare above, and buckets that differ. None: compare again."""

    grave_floor: Version
    catalogue_floor: Version
    buckets: Annotated[list[int], msgspec.Meta(max_length=BUCKETS)] | None


class ListBuckets(msgspec.Struct, array_like=True, frozen=True):
    """hashes: of all that I have in these buckets above the floors."""

    buckets: Annotated[list[int], msgspec.Meta(max_length=BUCKETS)]
    hashes: Hashes
    grave_floor: Version
    catalogue_floor: Version


class Listing(msgspec.Struct, array_like=True, frozen=True):
    """What I have and you have not; hashes of what you have and I have not."""

    items: Items
    stones: Stones = []
    lacks: Hashes = b""


class Get(msgspec.Struct, array_like=True, frozen=True):
    """Answered by `Blocks`."""

    keys: Annotated[list[Key], msgspec.Meta(max_length=ITEMS_MAX)]


class Hot(msgspec.Struct, array_like=True, frozen=True):
    """Your hottest entries; answered by `Listing`."""

    count: Annotated[int, msgspec.Meta(ge=1, le=ITEMS_MAX)]


class Ping(msgspec.Struct, array_like=True, frozen=True):
    """For the distance and the breaker."""

    region: Short


class Pong(msgspec.Struct, array_like=True, frozen=True):
    region: Short
    wall_ms: Count


_M = TypeVar("_M", bound=msgspec.Struct)
Payload = tuple[Item, Buffer]


def item_of(entry: Entry) -> Item:
    return Item(
        entry.key,
        entry.version,
        entry.model,
        entry.tenant,
        entry.parent,
        entry.tokens,
        entry.size,
        entry.checksum,
        entry.name,
        entry.expires_wall_ms,
    )


def entry_of(item: Item, *, present: bool) -> Entry:
    return Entry(
        item.key,
        item.version,
        item.model,
        item.tenant,
        item.parent,
        item.tokens,
        item.size,
        item.checksum,
        item.name,
        item.expires_wall_ms,
        present,
    )


def stone_of(grave: Grave) -> Stone:
    return Stone(grave.kind, grave.target, grave.version)


def grave_of(stone: Stone) -> Grave:
    return Grave(stone.kind, stone.target, stone.version)


def record(item: Item, payload: Buffer, compression: str = "none") -> bytes:
    """One block as sent."""
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    encoding, stored = encode(payload, compression)
    header = BlockHeader(
        key=item.key,
        parent=item.parent.ljust(32, b"\0") if item.parent else b"",
        identity=item.model.ljust(32, b"\0"),
        tokens=item.tokens,
        stored_bytes=len(stored),
        raw_bytes=len(payload),
        checksum=payload_checksum(stored),
        encoding=encoding,
        expires_wall_ms=item.expires_wall_ms,
    )
    # Bound to the version too: the bytes of an older value cannot pass for the newer one's.
    return encode_record_header(header, _PLACE + item.version) + bytes(stored)


def hashes(numbers: Iterable[int]) -> bytes:
    """Eight bytes each."""
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def numbers(packed: bytes) -> set[int]:
    """What `hashes` packed."""
    return {int.from_bytes(packed[at : at + 8], "little") for at in range(0, len(packed), 8)}


def pack(message: msgspec.Struct, records: Sequence[bytes] = ()) -> bytes:
    """The body. A `Blocks` takes a record for each of its items."""
    document = msgspec.msgpack.encode(message)
    return b"".join((_LENGTH.pack(len(document)), document, *records))


def unpack(body: Buffer, kind: type[_M]) -> tuple[_M, memoryview]:
    """The document and what follows it. Raises MessageInvalid."""
    view = memoryview(body)
    if len(view) > BODY_BYTES_MAX or len(view) < _LENGTH.size:
        raise MessageInvalid("a bad length")
    (length,) = _LENGTH.unpack_from(view)
    end = _LENGTH.size + length
    if length > DOCUMENT_BYTES_MAX or end > len(view):
        raise MessageInvalid("a bad length of its document")
    try:
        message = msgspec.msgpack.decode(view[_LENGTH.size : end], type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MessageInvalid(f"not a {kind.__name__}: {error}") from None
    rest = view[end:]
    if rest and kind is not Blocks:
        raise MessageInvalid("something follows the document")
    return message, rest


def payloads(items: Sequence[Item], records: memoryview) -> Iterator[tuple[Item, Buffer | None]]:
    """Each item with its payload; `None` if the record is damaged. Raises MessageInvalid.

    A damaged header ends it: where the next record begins is not known then.
    """
    at = 0
    for item in items:
        header = parse_record_header(records[at:], _PLACE + item.version)
        if header is None or header.stored_bytes > len(records) - at - RECORD_HEADER_BYTES:
            raise MessageInvalid("a record is damaged")
        stored = records[at + RECORD_HEADER_BYTES :][: header.stored_bytes]
        at += RECORD_HEADER_BYTES + header.stored_bytes
        yield item, _payload(item, header, stored)
    if at != len(records):
        raise MessageInvalid("more bytes than records")


def _payload(item: Item, header: BlockHeader, stored: memoryview) -> Buffer | None:
    same = header.key == item.key and header.identity == item.model.ljust(32, b"\0")
    if not same or header.raw_bytes != item.size or not payload_matches(header, stored):
        return None
    # Its own buffer: a view would keep the whole body alive.
    return bytes(stored) if not header.encoding else decode(header.encoding, stored, item.size)
