"""Each bad input gets a 4xx in OpenAI's shape or a closed connection, and hurts nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from bul.config import ServeConfig
from bul.errors import BulError
from bul.inference.contract import Sampling
from bul.inference.timed import TimedCore
from bul.service.protocol import MESSAGE_BYTES_MAX
from bul.testing.replica import INSTANT, ReplicaUnderTest, running_replica
from bul.testing.waiting import until

pytestmark = pytest.mark.security
MODEL = "bul-timed"
GOOD = {"model": MODEL, "prompt": "hello", "max_tokens": 2}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
async def next_good_request_is_answered(client: httpx.AsyncClient) -> AsyncIterator[None]:
    yield
    answer = await client.post("/v1/completions", json=GOOD)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 2


def error_of(raw: bytes) -> tuple[int, dict[str, str]]:
    """Status and error of a raw answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model":"bul-timed","prompt":"a","max_tokens":-5}', 400, "max_tokens"),
        (
            b'{"model":"bul-timed","prompt":"a","max_tokens":99999999999999999999}',
            400,
            "max_tokens",
        ),
        (b'{"model":"bul-timed","prompt":"a","n":9}', 400, "n"),
        (b'{"model":"bul-timed","prompt":5}', 400, "prompt"),
        (b'{"model":"bul-timed","prompt":""}', 400, "prompt"),
        (b'{"model":"nobody","prompt":"a"}', 404, "model"),
        (b'{"model":"bul-timed","prompt":"' + b"word" * 4096 + b'"}', 400, "prompt"),
        (b'{"model":"bul-timed","prompt":"' + b"a" * 300_000 + b'"}', 400, "prompt"),
        (b'{"model":"bul-timed","prompt":"abcd","max_tokens":4096}', 400, "max_tokens"),
    ],
)
async def test_a_bad_body_names_its_field(
    client: httpx.AsyncClient, body: bytes, status: int, param: str | None
) -> None:
    answer = await client.post("/v1/completions", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


async def test_a_bad_header_value_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json=GOOD, headers={"x-bul-cache": "maybe"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-bul-cache"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/health", 405),
        ("GET", "/", 404),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1//models", 404),
        ("GET", "/v1/models%2f", 404),
    ],
)
async def test_wrong_methods_and_paths_are_told(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


async def test_a_declared_body_over_4_mib_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", content=b" " * ((4 << 20) + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_chunked_body_over_4_mib_is_refused_while_it_comes(
    client: httpx.AsyncClient,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * (1 << 16)

    answer = await client.post("/v1/completions", content=endless())
    assert answer.status_code == 413


async def test_a_body_of_exactly_4_mib_is_read(client: httpx.AsyncClient) -> None:
    body = json.dumps(GOOD).encode()
    answer = await client.post("/v1/completions", content=body + b" " * ((4 << 20) - len(body)))
    assert answer.status_code == 200


async def test_a_message_without_end_is_cut_off(replica: ReplicaUnderTest) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(ConnectionError):
        await write_chunks(writer, bytes_max=8 * MESSAGE_BYTES_MAX)
    writer.close()


async def write_chunks(writer: asyncio.StreamWriter, *, bytes_max: int) -> None:
    for _ in range(bytes_max // 0x10000):
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Long: " + b"a" * 33_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (at, b"a" * 90) for at in range(400)),
    ],
)
async def test_a_head_over_32_kib_is_refused(replica: ReplicaUnderTest, fields: bytes) -> None:
    status, error = error_of(await replica.raw(HEAD + fields + b"Content-Length: 0\r\n\r\n"))
    assert (status, error["code"]) == (431, "headers_too_large")


async def test_a_head_without_end_is_refused(replica: ReplicaUnderTest) -> None:
    raw = await replica.raw(HEAD + b"X-Long: " + b"a" * 400_000)
    assert raw == b"" or error_of(raw)[0] == 431  # a reset may overtake the answer


async def test_a_head_just_under_32_kib_is_taken(replica: ReplicaUnderTest) -> None:
    body = json.dumps(GOOD).encode()
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\nX-Long: " % len(body)
    head += b"a" * ((32 << 10) - len(head) - 100) + b"\r\n\r\n"
    assert b"200 OK" in await replica.raw(head + body)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        HEAD + b"Content-Length: -2\r\n\r\n{}",
        HEAD + b"X-Bad: a\r\n folded\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"No colon here\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_broken_http_is_a_400_in_openai_shape_and_the_connection_closes(
    replica: ReplicaUnderTest, data: bytes
) -> None:
    raw = await replica.raw(data)
    assert raw.count(b"HTTP/1.1 ") == 1
    status, error = error_of(raw)
    assert (status, error["code"]) == (400, "malformed_http")


async def test_a_body_that_stops_half_way_leaves_nothing_behind(replica: ReplicaUnderTest) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    assert await reader.read() == b""


async def test_too_much_waiting_is_429_with_retry_after() -> None:
    serve = ServeConfig(port=0, slots=1, waiting_max=0)
    async with (
        running_replica(serve) as replica,
        httpx.AsyncClient(base_url=replica.url, timeout=30) as client,
    ):
        body = GOOD | {"n": 8, "max_tokens": 200}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "overloaded"
        assert (await client.get("/health")).status_code == 200
        await until(lambda: replica.runner.load().running + replica.runner.load().waiting == 0)
        assert (await client.post("/v1/completions", json=GOOD)).status_code == 200


class FailingCore(TimedCore):
    """Fails with a message that quotes the prompt, at the n-th sampled token."""

    def __init__(self, fail_at: int, error: Exception) -> None:
        super().__init__(ServeConfig(port=0), INSTANT)
        self.fail_at = fail_at
        self.error = error
        self.sampled = 0

    def start_sampling(self, slot: int, sampling: Sampling, drawn: int = 0) -> None:
        self.sampled = 0
        super().start_sampling(slot, sampling)

    def sample(self, slot: int) -> int:
        self.sampled += 1
        if self.sampled == self.fail_at:
            raise self.error
        return super().sample(slot)


async def test_a_fault_of_ours_is_a_clean_500_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = FailingCore(1, RuntimeError("SECRET-PROMPT-CANARY"))
    async with (
        running_replica(core=core) as replica,
        httpx.AsyncClient(base_url=replica.url, timeout=30) as client,
    ):
        answer = await client.post("/v1/completions", json=GOOD)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.headers["x-request-id"] in answer.text
        assert "CANARY" not in answer.text
        assert "Traceback" not in answer.text
        core.fail_at = 0
        assert (await client.post("/v1/completions", json=GOOD)).status_code == 200
    assert "CANARY" not in caplog.text
    own = [record for record in caplog.records if record.name == "bul.service.failures"]
    assert len(own) == 1


async def test_a_fault_in_mid_stream_is_an_error_event_and_never_done() -> None:
    core = FailingCore(3, BulError("the engine broke"))
    async with (
        running_replica(core=core) as replica,
        httpx.AsyncClient(base_url=replica.url, timeout=30) as client,
    ):
        body = GOOD | {"max_tokens": 10, "stream": True}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200
        events = answer.text.strip().split("\n\n")
        assert "error" in json.loads(events[-1].removeprefix("data: "))
        assert "[DONE]" not in answer.text
        core.fail_at = 0
        control = await client.post("/v1/completions", json=body)
        assert control.text.endswith("data: [DONE]\n\n")
