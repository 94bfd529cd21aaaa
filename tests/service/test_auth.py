import asyncio
import itertools

import httpx
import pytest

from bul.accounts.keys import hash_key, make_key
from bul.config import ServeConfig
from bul.errors import ConfigError
from bul.service.auth import Gate, check_bind, tenant_salt
from bul.service.server import bind
from bul.testing.replica import ReplicaUnderTest, running_replica

pytestmark = pytest.mark.security
KEYS = {name: f"bul-{name}-key" for name in ("alice", "bob", "operator")}
HASHES = {name: hash_key(key) for name, key in KEYS.items()}
PATHS = [
    "/", "/metrics", "/signals", "/v1/models", "/v1/models/x", "/v1/completions",
    "/v1/chat/completions", "/nothing",
]  # fmt: skip
TRICKS = [
    "{0}", "/health/..{0}", "/health/%2e%2e{0}", "/ready/../{0}", "//{0}", "/health{0}",
    "/health;{0}", "/health%00{0}", "/health%2f..{0}", "{0}?/health", "{0}#/health", "{0}/health",
    "{0};/ready", "{0}%2fhealth", "http://x/health{0}", "http://health{0}", "/HEALTH", "/Health",
    "/health/", "/health.", "/%68ealth", "/health%20", "/./health", "/health/.", "\\health",
    "/ready%3f", "/v1/../health", "{0}%3f", "{0}/../health", "{0}/..;/health",
]  # fmt: skip
HOSTS = ["x", "localhost", "127.0.0.1:8002", "/health", "x/health", "x?/health", "x#/ready", ""]
HEADERS = [
    "",
    "Authorization: Bearer wrong\r\n",
    "Authorization: Bearer \r\n",
    "Authorization: Basic Ym9iOmJvYg==\r\n",
    f"Authorization: Bearer {KEYS['bob']}x\r\n",
    f"Authorization: {KEYS['bob']}\r\n",
    f"Authorization: Bearer {HASHES['bob']}\r\n",
    f"Authorization: Bearer {KEYS['bob']}\r\nAuthorization: Bearer {KEYS['bob']}\r\n",
    f"X-Authorization: Bearer {KEYS['bob']}\r\n",
    "X-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nX-Forwarded-For: 127.0.0.1\r\n",
]


async def test_no_trick_with_host_path_or_header_gets_past_the_gate() -> None:
    async with running_replica(keys=HASHES) as replica:
        cases = [
            *itertools.product(PATHS, TRICKS, HOSTS[:2], HEADERS[:1]),
            *itertools.product(PATHS[1:5], TRICKS[:1], HOSTS, HEADERS),
        ]
        statuses = await each(replica, cases)
        assert len(cases) > 500
        assert set(statuses) <= {400, 401}
        assert statuses.count(401) > 0.8 * len(cases)
        assert await each(replica, [("/health", "{0}", "x", ""), ("/ready", "{0}", "x", "")]) == [
            200,
            200,
        ]


async def each(replica: ReplicaUnderTest, cases: list[tuple[str, str, str, str]]) -> list[int]:
    """Statuses, in order, asked over one connection at a time."""
    gate = asyncio.Semaphore(32)

    async def one(path: str, trick: str, host: str, headers: str) -> int:
        target = trick.format(path)
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
        async with gate:
            return int((await replica.raw(head.encode()))[9:12])

    return await asyncio.gather(*(one(*case) for case in cases))


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


async def test_a_good_key_opens_and_totals_are_for_the_operator() -> None:
    async with (
        running_replica(keys=HASHES) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        assert (await client.get("/v1/models", headers=bearer("bob"))).status_code == 200
        refused = await client.get("/v1/models")
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/signals"):
            assert (await client.get(path, headers=bearer("bob"))).status_code == 403
            assert (await client.get(path, headers=bearer("operator"))).status_code == 200


async def test_tenants_do_not_see_each_others_blocks() -> None:
    body = {"model": "bul-timed", "prompt": "word" * 300, "max_tokens": 1, "temperature": 0}
    async with (
        running_replica(keys=HASHES) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):

        async def cached(name: str) -> int:
            answer = await client.post("/v1/completions", json=body, headers=bearer(name))
            found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            return found

        assert await cached("alice") == 0
        assert await cached("bob") == 0
        assert await cached("alice") > 0, "the control: within a tenant there is a signal"


async def test_tenants_share_where_they_are_told_to() -> None:
    body = {"model": "bul-timed", "prompt": "word" * 300, "max_tokens": 1, "temperature": 0}
    serve = ServeConfig(port=0, share_between_tenants=True)
    async with (
        running_replica(serve, keys=HASHES) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        await client.post("/v1/completions", json=body, headers=bearer("alice"))
        answer = await client.post("/v1/completions", json=body, headers=bearer("bob"))
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_the_gate_knows_whose_key_it_is() -> None:
    gate = Gate(HASHES)
    for name, key in KEYS.items():
        assert gate.tenant_of([(b"authorization", b"Bearer " + key.encode())]) == name
        assert gate.tenant_of([(b"authorization", b"bearer " + key.encode())]) == name
    assert gate.tenant_of([(b"authorization", b"Bearer " + b"x" * 10_000)]) is None
    assert Gate({}).tenant_of([]) == ""


def test_only_the_operator_or_a_sole_tenant_may_see_totals() -> None:
    assert not Gate(HASHES).may_see_totals("bob")
    assert Gate(HASHES).may_see_totals("operator")
    assert Gate({"bob": HASHES["bob"]}).may_see_totals("bob")
    assert Gate({}).may_see_totals("")


def test_salts_differ_by_tenant_and_by_secret() -> None:
    salts = {tenant_salt(secret, name) for secret in ("", "s") for name in ("", "alice", "bob")}
    assert len(salts) == 6
    assert tenant_salt("s", "alice", share=True) == tenant_salt("s", "bob", share=True)


def test_made_keys_are_long_and_never_twice_the_same() -> None:
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 40


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "example.test", ""])
def test_a_bind_beyond_loopback_without_a_key_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="bul keys create"):
        check_bind(host, {})
    check_bind(host, HASHES)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_bind(host, {})


def test_a_taken_port_says_what_to_do() -> None:
    with bind(ServeConfig(port=0), {}) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is taken.*--port 0"):
            bind(ServeConfig(port=port), {})


def test_an_unknown_host_says_so() -> None:
    with pytest.raises(ConfigError, match="cannot"):
        bind(ServeConfig(host="192.0.2.1", port=0), HASHES)
