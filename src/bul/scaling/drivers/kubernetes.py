"""Replicas as pods of a Deployment, scaled through its scale subresource (`kubernetes_asyncio`).

Refuses to own the Deployment: it changes one number, and closing the driver leaves the pods as they
are, so that a scaler that restarts takes nothing down. Every write carries the `resourceVersion`
that was read; on a conflict both are done again. Draining is the pod's own: on termination
Kubernetes runs its preStop hook and sends SIGTERM, upon which a replica finishes its answers.

Of a scale-in Kubernetes chooses the pod; `replace` tells it which one by the annotation
`controller.kubernetes.io/pod-deletion-cost`. What it may do: deploy/kubernetes/rbac.yaml.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from bul.errors import ConfigError, DriverError
from bul.scaling.drivers.contract import Admitted, Replica, at_once

__all__ = ["KubernetesDriver", "KubernetesPlan", "kubernetes_driver"]

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST_TO_GO = "-1000"
CANNOT_LIVE = frozenset(
    ("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName",
     "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
)  # fmt: skip
PASSING = frozenset((429, 500, 502, 503, 504))
TRIES = 5
RETRY_S, RETRY_S_MAX = 0.2, 5.0
POLL_S = 0.2
WORDS_MAX = 300
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KubernetesPlan:
    """port: of the containers. kubeconfig: "" for the pod's own service account. call_s: of one
    call with its repetitions. ready_s: from a replacement's start to ready.
    """

    namespace: str
    deployment: str
    port: int = 8002
    kubeconfig: str = ""
    call_s: float = 10.0
    ready_s: float = 600.0
    replicas_max: int = 64


def kubernetes_driver(plan: KubernetesPlan) -> KubernetesDriver:
    """Raises ConfigError without the extra `kubernetes`."""
    return KubernetesDriver(plan)


class KubernetesDriver:
    """A `Driver` that owns no replica."""

    def __init__(self, plan: KubernetesPlan) -> None:
        try:
            import aiohttp  # noqa: PLC0415 - comes with the extra
            import kubernetes_asyncio  # noqa: PLC0415 - an extra
        except ImportError as error:
            hint = "pip install 'bul[kubernetes]'"
            raise ConfigError("the kubernetes driver needs its client", hint=hint) from error
        self._plan = plan
        self._kubernetes: Any = kubernetes_asyncio
        self._refused: type[Exception] = kubernetes_asyncio.client.ApiException
        self._broken = (aiohttp.ClientError, OSError)
        self._api: Any = None
        self._changing = asyncio.Lock()
        self._closed = False

    async def replicas(self) -> Sequence[Replica]:
        """The pods, and a pending one for each that the Deployment has yet to make."""
        scale = await self._scale()
        listed = await self._call(
            "list the pods",
            lambda api: self._kubernetes.client.CoreV1Api(api).list_namespaced_pod(
                self._plan.namespace, label_selector=scale.status.selector
            ),
        )
        wanted = scale.spec.replicas or 0
        pods = sorted(listed.items, key=lambda pod: str(pod.metadata.creation_timestamp))
        found = [self._replica(pod) for pod in pods]
        staying = [one for one in found if one.state != "draining"]
        surplus = {one.name for one in staying[wanted:]}  # about to go, the newest first
        missing = [
            Replica(name=f"{self._plan.deployment}-to-come-{i}", url="", state="pending")
            for i in range(wanted - len(staying))
        ]
        return [
            dataclasses.replace(one, state="draining") if one.name in surplus else one
            for one in found
        ] + missing

    async def scale_to(self, replicas: int) -> None:
        self._refuse_if_closed()
        if not 0 <= replicas <= self._plan.replicas_max:
            most = self._plan.replicas_max
            raise DriverError(f"replicas must be in [0, {most}], was {replicas}")
        async with self._changing:
            await self._change(lambda _: replicas)

    async def replace(self, name: str, *, admitted: Admitted = at_once) -> Replica | None:
        self._refuse_if_closed()
        async with self._changing:
            before = await self.replicas()
            if name not in [one.name for one in before if one.state in ("pending", "ready")]:
                raise DriverError(f"there is no pod {name} that could be replaced")
            await self._change(lambda current: current + 1)
            try:
                new = await self._new_one({one.name for one in before})
                await admitted(new.url)
                left = name not in [one.name for one in await self.replicas()]
                if not left:
                    await self._mark(name)
            finally:
                # Also when it failed or was cancelled: as many as there were.
                await asyncio.shield(self._change(lambda current: max(current - 1, 0)))
            return None if left else await self._gone(name, new)

    async def close(self) -> None:
        """Leaves the Deployment as it is."""
        self._closed = True
        if self._api is not None:
            await self._api.close()
            self._api = None

    def kill(self) -> None:
        """Nothing was started here, so nothing is ended."""

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DriverError("this driver is closed")

    async def _scale(self) -> Any:
        plan = self._plan
        return await self._call(
            f"read the scale of deployment {plan.deployment}",
            lambda api: self._kubernetes.client.AppsV1Api(api).read_namespaced_deployment_scale(
                plan.deployment, plan.namespace
            ),
        )

    async def _change(self, wish: Callable[[int], int]) -> None:
        """Read, write what was read with another number, and again on a conflict."""
        plan = self._plan
        for _ in range(TRIES):
            scale = await self._scale()
            current = scale.spec.replicas or 0
            wanted = wish(current)
            if wanted == current:
                return
            scale.spec.replicas = wanted
            try:
                await self._write(scale)
            except _Conflict:
                continue
            return
        raise DriverError(
            f"cannot scale deployment {plan.deployment}: somebody else changed it {TRIES} times",
            hint="is a HorizontalPodAutoscaler on it too? one scaler alone may own it",
        )

    async def _write(self, scale: Any) -> None:
        plan = self._plan
        await self._call(
            f"scale deployment {plan.deployment} to {scale.spec.replicas}",
            lambda api: self._kubernetes.client.AppsV1Api(api).replace_namespaced_deployment_scale(
                plan.deployment, plan.namespace, scale
            ),
        )

    async def _mark(self, name: str) -> None:
        """Make this pod the first to go."""
        patch = {"metadata": {"annotations": {DELETION_COST: FIRST_TO_GO}}}
        await self._call(
            f"annotate pod {name}",
            lambda api: self._kubernetes.client.CoreV1Api(api).patch_namespaced_pod(
                name,
                self._plan.namespace,
                patch,
                _content_type="application/merge-patch+json",
            ),
        )

    async def _new_one(self, known: set[str]) -> Replica:
        failure = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._plan.ready_s):
                while not failure:
                    for one in await self.replicas():
                        if one.name not in known and one.state == "ready":
                            return one
                        if one.name not in known and one.state == "failed":
                            failure = f"{one.name} cannot start: {one.failure}"
                    await asyncio.sleep(POLL_S)
        raise DriverError(failure or f"no new pod was ready within {self._plan.ready_s:g} s")

    async def _gone(self, name: str, new: Replica) -> Replica:
        while name in [one.name for one in await self.replicas()]:  # noqa: ASYNC110 - of a server
            await asyncio.sleep(POLL_S)
        return new

    def _replica(self, pod: Any) -> Replica:
        name, address = pod.metadata.name, pod.status.pod_ip
        shown = f"[{address}]" if address and ":" in address else address
        url = f"http://{shown}:{self._plan.port}" if shown else ""
        if pod.metadata.deletion_timestamp is not None:
            return Replica(name=name, url=url, state="draining")
        if why := _why_not(pod.status):
            return Replica(name=name, url=url, state="failed", failure=why)
        ready = any(one.type == "Ready" and one.status == "True" for one in _conditions(pod))
        return Replica(name=name, url=url, state="ready" if ready and url else "pending")

    async def _call(self, what: str, call: Callable[[Any], Awaitable[Result]]) -> Result:
        """Within call_s, again while the server says that it will pass. Raises DriverError."""
        try:
            async with asyncio.timeout(self._plan.call_s):
                return await self._tried(what, call)
        except TimeoutError:
            limit_s = self._plan.call_s
            raise DriverError(f"cannot {what}: no answer within {limit_s:g} s") from None

    async def _tried(self, what: str, call: Callable[[Any], Awaitable[Result]]) -> Result:
        wait_s = RETRY_S
        for number in range(1, TRIES + 1):
            try:
                return await call(await self._connected())
            except self._broken as error:
                failure, after_s = DriverError(f"cannot {what}: {error}"), 0.0
            except self._refused as error:
                failure, after_s = _meaning(what, error), _retry_after_s(error)
                if getattr(error, "status", 0) not in PASSING:
                    raise failure from error
            if number == TRIES:
                raise failure
            await asyncio.sleep(max(after_s, wait_s))
            wait_s = min(2 * wait_s, RETRY_S_MAX)
        raise AssertionError("the last try returns or raises")

    async def _connected(self) -> Any:
        """The client, made at the first call. Raises ConfigError: no usable configuration."""
        if self._api is None:
            config = self._kubernetes.config
            try:
                if self._plan.kubeconfig:
                    self._api = await config.new_client_from_config(self._plan.kubeconfig)
                else:
                    config.load_incluster_config()
                    self._api = self._kubernetes.client.ApiClient()
            except (config.ConfigException, OSError) as error:
                hint = "outside a cluster, name a file in [kubernetes] kubeconfig"
                raise ConfigError(f"no way into the cluster: {error}", hint=hint) from error
        return self._api


class _Conflict(DriverError):
    """Somebody else wrote in between."""


def _meaning(what: str, error: Any) -> DriverError:
    said = " ".join(str(error.body or error.reason or "").split())[:WORDS_MAX]
    text = f"cannot {what}: {error.status} {said}"
    if error.status == 409:
        return _Conflict(text)
    if error.status in (401, 403):
        return DriverError(text, hint="apply deploy/kubernetes/rbac.yaml, in this namespace")
    if error.status == 404:
        return DriverError(text, hint="[kubernetes] namespace and deployment name it")
    return DriverError(text)


def _retry_after_s(error: Any) -> float:
    headers: Mapping[str, str] = error.headers or {}
    try:
        return min(float(headers.get("Retry-After", "0")), RETRY_S_MAX)
    except ValueError:
        return 0.0


def _why_not(status: Any) -> str:
    if status.phase == "Failed":
        return f"the pod failed: {status.reason or ''} {status.message or ''}".strip()
    for container in status.container_statuses or ():
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason in CANNOT_LIVE:
            return f"{waiting.reason}: {waiting.message or ''}".strip()[:WORDS_MAX]
    return ""


def _conditions(pod: Any) -> Sequence[Any]:
    found: Sequence[Any] = pod.status.conditions or ()
    return found
