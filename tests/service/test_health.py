import httpx
import pytest

from bul.clock import Clock
from bul.config import ServeConfig
from bul.errors import BulError, Overloaded
from bul.inference.contract import RunnerLoad
from bul.inference.runner import BatchingRunner
from bul.inference.timed import TimedCore
from bul.service.health import Health
from bul.testing.clock import ManualClock
from bul.testing.replica import INSTANT, ReplicaUnderTest, running_replica


class StoppedRunner(BatchingRunner):
    """Says that its loop has not turned for `age_s`; generates nothing but `error`."""

    def __init__(self, age_s: float, error: Exception | None = None) -> None:
        self._age_s = age_s
        self._error = error
        self._fake_core = TimedCore(ServeConfig(), INSTANT)
        self.asked = 0

    @property
    def core(self) -> TimedCore:
        return self._fake_core

    def load(self) -> RunnerLoad:
        return RunnerLoad(
            running=4, waiting=900, slots=4, loop_age_s=self._age_s, queue_delay_s=60.0,
            prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0,
        )  # fmt: skip

    async def generate(self, request):  # type: ignore[no-untyped-def]  # a fake that yields nothing
        self.asked += 1
        if self._error is not None:
            raise self._error
        return
        yield


def health(runner: StoppedRunner | None, clock: Clock | None = None) -> Health:
    found = Health(stuck_after_s=30.0, clock=clock or ManualClock())
    found.runner = runner
    return found


async def test_before_the_model_is_loaded_it_lives_but_is_not_ready() -> None:
    assert await health(None).live(deep=True) == (True, {"status": "loading"})
    assert health(None).ready() == (False, {"status": "loading"})


async def test_overload_is_healthy_and_ready() -> None:
    busy = health(StoppedRunner(0.0))
    assert (await busy.live(deep=False))[0]
    assert busy.ready() == (True, {"status": "ready"})


@pytest.mark.parametrize(("age_s", "healthy"), [(29.9, True), (30.0, True), (30.1, False)])
async def test_a_loop_that_stands_still_is_unhealthy(age_s: float, healthy: bool) -> None:
    stuck = health(StoppedRunner(age_s))
    assert (await stuck.live(deep=False))[0] is healthy
    assert stuck.ready()[0] is healthy


async def test_draining_is_healthy_but_not_ready() -> None:
    draining = health(StoppedRunner(0.0))
    draining.draining = True
    assert (await draining.live(deep=False))[0]
    assert draining.ready() == (False, {"status": "draining"})


@pytest.mark.parametrize(
    ("error", "healthy", "outcome"),
    [
        (None, True, "ok"),
        (Overloaded("full"), True, "overloaded"),
        (BulError("broken"), False, "failed"),
    ],
)
async def test_the_deep_probe_tells_a_full_engine_from_a_broken_one(
    error: Exception | None, healthy: bool, outcome: str
) -> None:
    found, body = await health(StoppedRunner(0.0, error)).live(deep=True)
    assert (found, body["deep"]) == (healthy, outcome)


async def test_deep_probes_cost_one_token_a_second_whoever_asks() -> None:
    clock, runner = ManualClock(), StoppedRunner(0.0)
    probed = health(runner, clock)
    for _ in range(50):
        await probed.live(deep=True)
    assert runner.asked == 1
    clock.advance(1.0)
    await probed.live(deep=True)
    assert runner.asked == 2


async def test_a_live_replica_is_healthy_deep_and_ready(
    client: httpx.AsyncClient, replica: ReplicaUnderTest
) -> None:
    assert (await client.get("/health")).json() == {"status": "ok", "engine": "timed"}
    assert (await client.get("/health?deep=1")).json()["deep"] == "ok"
    assert (await client.get("/ready")).status_code == 200
    assert (await client.head("/health")).status_code == 200
    assert replica.cache.stats()["ram"]["blocks"] == 0


async def test_a_draining_replica_sends_new_work_away_with_retry_after() -> None:
    async with (
        running_replica() as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        replica.app.start_draining()
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        body = {"model": "bul-timed", "prompt": "a"}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "shutting_down"
