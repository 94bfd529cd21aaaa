"""The kubernetes driver against a strict stand-in of the API; no real server was tried."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bul.errors import ConfigError, DriverError
from bul.scaling.drivers.kubernetes import KubernetesDriver, KubernetesPlan, kubernetes_driver
from bul.testing.driver_contract import DriverContract
from bul.testing.kubernetes_api import ClusterStandIn, Fault, kubernetes_stand_in
from bul.testing.waiting import eventually

pytestmark = pytest.mark.slow
RBAC = Path(__file__).parent.parent.parent / "deploy" / "kubernetes" / "rbac.yaml"
PLAN = KubernetesPlan(namespace="default", deployment="bul", call_s=5.0, ready_s=5.0)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ClusterStandIn]:
    async with kubernetes_stand_in(RBAC, tmp_path) as (cluster, _):
        yield cluster


@pytest.fixture
def plan(cluster: ClusterStandIn, tmp_path: Path) -> KubernetesPlan:
    return dataclasses.replace(PLAN, kubeconfig=str(tmp_path / "kubeconfig"))


@pytest.fixture
async def driver(plan: KubernetesPlan) -> AsyncIterator[KubernetesDriver]:
    driver = kubernetes_driver(plan)
    yield driver
    await driver.close()


class TestKubernetesDriver(DriverContract):
    owns_replicas = False


async def ready(driver: KubernetesDriver, replicas: int) -> None:
    async def are() -> bool:
        return [one.state for one in await driver.replicas()] == ["ready"] * replicas

    await eventually(f"{replicas} are ready", are)


async def test_a_conflict_is_read_again_and_written_again(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    cluster.faults.append(Fault(conflict_to=7, only="PUT"))
    await driver.scale_to(3)
    assert cluster.replicas == 3
    assert [call for call, _ in cluster.calls] == ["GET", "PUT", "GET", "PUT"]


async def test_conflicts_without_end_name_a_second_scaler(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    cluster.faults.extend(Fault(conflict_to=10 + i, only="PUT") for i in range(9))
    with pytest.raises(DriverError, match="HorizontalPodAutoscaler"):
        await driver.scale_to(3)
    assert cluster.writes == []


@pytest.mark.parametrize("status", [429, 500, 503, 504])
async def test_what_will_pass_is_tried_again(
    driver: KubernetesDriver, cluster: ClusterStandIn, status: int
) -> None:
    cluster.faults.extend(Fault(status=status, retry_after="0") for _ in range(2))
    await driver.scale_to(2)
    assert cluster.writes == [2]


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "rbac.yaml"), (403, "rbac.yaml"), (404, "namespace"), (422, "422")]
)
async def test_what_will_not_pass_is_said_at_once(
    driver: KubernetesDriver, cluster: ClusterStandIn, status: int, hint: str
) -> None:
    cluster.faults.append(Fault(status=status))
    with pytest.raises(DriverError) as caught:
        await driver.scale_to(2)
    assert hint in str(caught.value)
    assert str(status) in str(caught.value)
    assert len(cluster.calls) == 1


async def test_a_server_that_hangs_is_a_clear_error(
    plan: KubernetesPlan, cluster: ClusterStandIn
) -> None:
    driver = kubernetes_driver(dataclasses.replace(plan, call_s=0.2))
    cluster.faults.append(Fault(hang=True))
    with pytest.raises(DriverError, match=r"no answer within 0.2 s"):
        await driver.scale_to(2)
    await driver.scale_to(2)
    assert cluster.writes == [2]
    await driver.close()


async def test_a_write_whose_answer_is_lost_is_not_done_twice(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    cluster.faults.append(Fault(lost=True, only="PUT"))
    await driver.scale_to(2)
    assert cluster.writes == [2]
    await ready(driver, 2)


async def test_pods_that_are_not_made_yet_count_as_pending(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    cluster.quota = 1
    await driver.scale_to(3)
    states = [one.state for one in await driver.replicas()]
    assert len(states) == 3
    assert states.count("pending") >= 2


async def test_a_pod_that_cannot_live_is_failed_with_the_reason(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    cluster.waiting_reason = "ImagePullBackOff"
    await driver.scale_to(1)
    (failed,) = await driver.replicas()
    assert (failed.state, failed.failure) == ("failed", "ImagePullBackOff:")


async def test_replacing_takes_the_named_pod_and_uses_every_grant(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    await driver.scale_to(2)
    await ready(driver, 2)
    old = (await driver.replicas())[0].name
    new = await driver.replace(old)
    assert new is not None
    assert cluster.writes == [2, 3, 2]
    names = [one.name for one in await driver.replicas()]
    assert old not in names
    assert new.name in names
    # The manifest grants what is used, and nothing else.
    assert cluster.used == cluster.granted


async def test_a_replacement_that_cannot_live_is_taken_back(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    await driver.scale_to(1)
    await ready(driver, 1)
    (old,) = await driver.replicas()
    cluster.waiting_reason = "CrashLoopBackOff"
    with pytest.raises(DriverError, match="CrashLoopBackOff"):
        await driver.replace(old.name)
    assert cluster.writes == [1, 2, 1]
    await eventually("it is as before", lambda: list(cluster.pods) == [old.name])


async def test_closing_leaves_the_deployment_as_it_is(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    await driver.scale_to(2)
    await driver.close()
    assert cluster.replicas == 2


async def test_the_stand_in_refuses_what_is_not_granted(
    driver: KubernetesDriver, cluster: ClusterStandIn
) -> None:
    """The control: the driver works because it may, not because nobody looks."""
    cluster.granted.discard(("update", "deployments/scale"))
    with pytest.raises(DriverError, match="403"):
        await driver.scale_to(2)


@pytest.mark.parametrize("name", ["", "none"])
async def test_without_a_way_into_the_cluster_it_is_said(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name) if name else ""  # outside a cluster there is no account either
    driver = kubernetes_driver(dataclasses.replace(PLAN, kubeconfig=path))
    with pytest.raises(ConfigError, match="no way into the cluster"):
        await driver.replicas()


async def test_a_server_that_is_not_there_is_a_driver_error(tmp_path: Path) -> None:
    async with kubernetes_stand_in(RBAC, tmp_path):
        plan = dataclasses.replace(PLAN, kubeconfig=str(tmp_path / "kubeconfig"))
    driver = kubernetes_driver(dataclasses.replace(plan, call_s=0.3))
    with pytest.raises(DriverError, match="cannot read the scale"):
        await driver.replicas()
    await driver.close()
