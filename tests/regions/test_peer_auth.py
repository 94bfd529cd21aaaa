"""Who may speak to a region: each forgery is refused before its body is parsed, or even read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bul.regions import messages as m
from bul.regions.auth import WINDOW_MS, Guard, Seal
from bul.regions.node import PeerFailed
from bul.regions.peer import PeerApp, PeerClient
from bul.regions.server import PeerServer
from bul.testing.clock import ManualClock
from bul.testing.region_agents import SECRET

pytestmark = pytest.mark.security
US, EU = "us-east", "eu-west"
PATH = "/peer/ping"
NOW_MS = int(ManualClock().wall_s() * 1000)


class Peer:
    """An application whose handler counts, driven without a network."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        seal = Seal(SECRET, EU)
        self.guard = Guard(seal, (US, EU), body_bytes_max=1000)
        self.handled: list[tuple[str, str, bytes]] = []
        self.bodies_read = 0
        self.app = PeerApp(
            self.guard, seal, {"peer": self.handle, "local": self.handle}, self.clock
        )

    async def handle(self, region: str, path: str, body: bytes) -> bytes:
        self.handled.append((region, path, body))
        return b"fine"

    async def post(
        self, headers: dict[str, str], body: bytes, path: str = PATH, method: str = "POST"
    ) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            self.bodies_read += 1
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        told = {"content-length": str(len(body))} | headers
        scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in told.items()],
        }
        await self.app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]


def signed(body: bytes = b"body", path: str = PATH, **changes: str) -> dict[str, str]:
    return Seal(SECRET, US).request(EU, path, body, NOW_MS) | changes


async def test_a_signed_request_is_answered_and_counts_as_control() -> None:
    peer = Peer()
    assert await peer.post(signed(), b"body") == (200, b"fine")
    assert peer.handled == [(US, "ping", b"body")]


FORGERIES: dict[str, Callable[[], dict[str, str]]] = {
    "absent": dict,
    "another secret": lambda: Seal("x" * 40, US).request(EU, PATH, b"body", NOW_MS),
    "a flipped mac": lambda: signed() | {"x-bul-mac": "0" * 64},
    "no mac": lambda: signed() | {"x-bul-mac": ""},
    "another path": lambda: signed(path="/peer/get"),
    "for another region": lambda: Seal(SECRET, US).request("ap-south", PATH, b"body", NOW_MS),
    "of an unknown region": lambda: Seal(SECRET, "nowhere").request(EU, PATH, b"body", NOW_MS),
    "in another's name": lambda: signed() | {"x-bul-from": EU},
    "another time": lambda: signed() | {"x-bul-time": str(NOW_MS + 1)},
    "another nonce": lambda: signed() | {"x-bul-nonce": "00" * 16},
    "another digest": lambda: signed() | {"x-bul-digest": "00" * 32},
    "too early": lambda: Seal(SECRET, US).request(EU, PATH, b"body", NOW_MS - WINDOW_MS - 1),
    "too late": lambda: Seal(SECRET, US).request(EU, PATH, b"body", NOW_MS + WINDOW_MS + 1),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_head_is_refused_before_the_body_is_read(name: str) -> None:
    peer = Peer()
    status, body = await peer.post(FORGERIES[name](), b"body")
    assert (status, body) == (401, b"refused\n")
    assert (peer.handled, peer.bodies_read) == ([], 0)
    assert peer.guard.refused_total == 1


async def test_a_request_at_the_edge_of_the_window_is_taken() -> None:
    peer = Peer()
    for now_ms in (NOW_MS - WINDOW_MS, NOW_MS + WINDOW_MS):
        headers = Seal(SECRET, US).request(EU, PATH, b"body", now_ms)
        assert (await peer.post(headers, b"body"))[0] == 200


async def test_a_replayed_request_is_refused_for_as_long_as_its_time_is_good() -> None:
    peer = Peer()
    headers = Seal(SECRET, US).request(EU, PATH, b"body", NOW_MS + WINDOW_MS)
    assert (await peer.post(headers, b"body"))[0] == 200
    for _ in range(2):
        assert (await peer.post(headers, b"body"))[0] == 401
        peer.clock.advance(2 * WINDOW_MS / 1000)
    assert (await peer.post(headers, b"body"))[0] == 401
    assert len(peer.handled) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": ""}, 411),
        ({"content-length": "-1"}, 411),
        ({"content-length": "9" * 13}, 411),
        ({"content-length": "1001"}, 413),
        ({"transfer-encoding": "chunked"}, 411),
        ({"content-length": "3"}, 401),
    ],
)
async def test_a_bad_length_is_refused_before_the_body_is_read(
    headers: dict[str, str], status: int
) -> None:
    peer = Peer()
    assert (await peer.post(signed() | headers, b"body"))[0] == status
    assert (peer.handled, peer.bodies_read) == ([], 0)


async def test_a_body_that_was_not_signed_is_refused_before_it_is_parsed() -> None:
    peer = Peer()
    assert (await peer.post(signed() | {"content-length": "4"}, b"BODY"))[0] == 401
    assert (await peer.post(signed() | {"content-length": "4"}, b"body and more"))[0] == 401
    assert peer.handled == []


async def test_another_region_may_not_speak_as_a_replica_nor_the_other_way_round() -> None:
    peer = Peer()
    local = "/local/erase"
    assert (await peer.post(signed(path=local), b"body", local))[0] == 401
    own = Seal(SECRET, EU)
    assert (await peer.post(own.request(EU, PATH, b"body", NOW_MS), b"body"))[0] == 401
    assert (await peer.post(own.request(EU, local, b"body", NOW_MS), b"body", local))[0] == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_only_posts_are_taken(method: str) -> None:
    assert (await Peer().post(signed(), b"body", method=method))[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\x7f" + bytes(100),
        m.pack(m.Ping("x")) + b"more",
        b"\x05\x00\x00\x00hello",
        b"\x01\x00\x00\x00\xc0",
        (200).to_bytes(4, "little") + b"\x91" * 200,
    ],
)
def test_what_is_not_one_message_is_refused(body: bytes) -> None:
    with pytest.raises(m.MessageInvalid):
        m.unpack(body, m.Ping)


def test_fields_out_of_range_are_refused() -> None:
    item = m.Item(b"k" * 31, 1, b"", b"", b"", 0, 0, 0, "", 0)
    body = m.pack(m.Offer([item], []))
    with pytest.raises(m.MessageInvalid):
        m.unpack(body, m.Offer)
    with pytest.raises(m.MessageInvalid):
        m.unpack(m.pack(m.Get([b"k" * 32] * 70_000)), m.Get)


async def test_an_answer_without_the_right_mac_is_not_believed() -> None:
    clock = ManualClock()

    class Impostor:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await receive()
            start = {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"4"), (b"x-bul-mac", b"0" * 64)],
            }
            await send(start)
            await send({"type": "http.response.body", "body": b"fine", "more_body": False})

    server = PeerServer(Impostor(), "127.0.0.1", 0)
    await server.start()
    client = PeerClient(Seal(SECRET, US), EU, server.url, clock)
    try:
        with pytest.raises(PeerFailed, match="unsigned"):
            await client.ask("ping", b"body", 5.0)
    finally:
        await client.close()
        await server.stop()


async def test_a_frozen_region_ends_at_the_deadline() -> None:
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = PeerClient(Seal(SECRET, US), EU, f"http://127.0.0.1:{port}", ManualClock())
    try:
        with pytest.raises(PeerFailed, match="did not answer"):
            await client.ask("ping", b"body", 0.05)
    finally:
        await client.close()
        for writer in writers:
            writer.close()
        server.close()
