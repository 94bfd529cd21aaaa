"""A strict stand-in for the part of a Kubernetes API server that the driver talks to.

It is not Kubernetes: it has one Deployment whose pods are entries in a table. It refuses more than
a real server does: any verb that the given RBAC manifest does not grant, any path, content type or
field that it does not know, and a write without the `resourceVersion` that was read last.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import datetime as dt
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

__all__ = ["ClusterStandIn", "kubernetes_stand_in"]

TOKEN = "stand-in-token"  # noqa: S105 - of a server that lives for one test
SCALE = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"
PODS = "/api/v1/namespaces/{namespace}/pods"
SCALE_FIELDS: Mapping[str, Any] = {
    "apiVersion": None,
    "kind": None,
    "metadata": {"name", "namespace", "resourceVersion", "uid", "creationTimestamp"},
    "spec": {"replicas"},
    "status": {"replicas", "selector"},
}
PATCH_TYPES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
SELECTOR = "app=bul"


@dataclasses.dataclass
class Fault:
    """One spoiled answer. status: instead of the real one. hang: never. lost: done, then cut off.

    conflict: somebody else scales first. only: for this method alone.
    """

    status: int = 0
    hang: bool = False
    lost: bool = False
    conflict_to: int | None = None
    retry_after: str = ""
    only: str = ""


class ClusterStandIn:
    """grants: of the manifest. Pods become ready after `ready_s`, and go after `drain_s`."""

    def __init__(self, rbac: Path, *, ready_s: float = 0.02, drain_s: float = 0.05) -> None:
        self.namespace, self.deployment = "default", "bul"
        self.replicas, self.version = 0, 1
        self.ready_s, self.drain_s = ready_s, drain_s
        self.pods: dict[str, dict[str, Any]] = {}
        self.faults: deque[Fault] = deque()
        self.waiting_reason = ""
        """New pods wait with this reason instead of becoming ready."""
        self.quota = 64
        """No more pods than these are made."""
        self.writes: list[int] = []
        self.calls: list[tuple[str, str]] = []
        self.granted = _grants(rbac)
        self.used: set[tuple[str, str]] = set()
        self._made = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._strictly])
        app.router.add_get(SCALE, self._get_scale)
        app.router.add_put(SCALE, self._put_scale)
        app.router.add_get(PODS, self._list_pods)
        app.router.add_patch(PODS + "/{pod}", self._patch_pod)
        return app

    def somebody_scales_to(self, replicas: int) -> None:
        """As a person with kubectl, or another scaler."""
        self.replicas, self.version = replicas, self.version + 1
        self._reconcile()

    @web.middleware
    async def _strictly(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if request.headers.get("Accept", "").find("application/json") < 0:
            return _status(406, "only application/json is served")
        verb, resource = _verb(request)
        self.used.add((verb, resource))
        if (verb, resource) not in self.granted:
            return _status(403, f"cannot {verb} resource {resource!r} in the namespace")
        fault = self._fault(request.method)
        if fault.hang:
            await asyncio.sleep(3600)
        if fault.conflict_to is not None:
            self.somebody_scales_to(fault.conflict_to)
        if fault.status:
            extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return _status(fault.status, "as the test asked", extra)
        response: web.StreamResponse = await handler(request)
        if fault.lost:
            assert request.transport is not None
            request.transport.abort()
        return response

    def _fault(self, method: str) -> Fault:
        if self.faults and self.faults[0].only in ("", method):
            return self.faults.popleft()
        return Fault()

    async def _get_scale(self, request: web.Request) -> web.StreamResponse:
        wrong = self._wrong_place(request)
        return wrong or web.json_response(self._scale())

    async def _put_scale(self, request: web.Request) -> web.StreamResponse:
        wrong = self._wrong_place(request)
        if wrong is not None:
            return wrong
        if request.content_type != "application/json":
            return _status(415, f"unsupported content type {request.content_type}")
        body = await request.json()
        if why := self._wrong_scale(body):
            return _status(422, why)
        if body["metadata"]["resourceVersion"] != str(self.version):
            return _status(409, "the object has been modified; please apply your changes again")
        self.writes.append(body["spec"]["replicas"])
        self.somebody_scales_to(body["spec"]["replicas"])
        return web.json_response(self._scale())

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        if set(request.query) - {"labelSelector"}:
            return _status(400, f"unknown parameters {sorted(request.query)}")
        if request.query.get("labelSelector") != SELECTOR:
            return _status(400, "this lists the Deployment's pods only")
        metadata = {"resourceVersion": str(self.version)}
        items = [copy.deepcopy(pod) for pod in self.pods.values()]
        document = {"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}
        return web.json_response(document)

    async def _patch_pod(self, request: web.Request) -> web.StreamResponse:
        pod = self.pods.get(request.match_info["pod"])
        if pod is None:
            return _status(404, "pods not found")
        if request.content_type not in PATCH_TYPES:
            return _status(415, f"unsupported content type {request.content_type}")
        body = json.loads(await request.text())
        if set(body) != {"metadata"} or set(body["metadata"]) != {"annotations"}:
            return _status(422, "only annotations may be patched here")
        pod["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        return web.json_response(pod)

    def _wrong_place(self, request: web.Request) -> web.Response | None:
        place = request.match_info["namespace"], request.match_info["name"]
        if place == (self.namespace, self.deployment):
            return None
        return _status(404, f'deployments.apps "{place[1]}" not found')

    def _wrong_scale(self, body: Mapping[str, Any]) -> str:
        for name, value in body.items():
            if name not in SCALE_FIELDS:
                return f"unknown field {name!r}"
            known = SCALE_FIELDS[name]
            if known is not None and set(value) - known:
                return f"unknown field in {name}: {sorted(set(value) - known)}"
        metadata, spec = body.get("metadata", {}), body.get("spec", {})
        if (body.get("apiVersion"), body.get("kind")) != ("autoscaling/v1", "Scale"):
            return "not a Scale of autoscaling/v1"
        if (metadata.get("namespace"), metadata.get("name")) != (self.namespace, self.deployment):
            return "the name in the body is not the one in the path"
        if not metadata.get("resourceVersion"):
            return "metadata.resourceVersion must be set"
        replicas = spec.get("replicas")
        return "" if type(replicas) is int and replicas >= 0 else "spec.replicas must be >= 0"

    def _scale(self) -> dict[str, Any]:
        return {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": self.deployment,
                "namespace": self.namespace,
                "resourceVersion": str(self.version),
                "uid": "0f0f",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"replicas": self.replicas},
            "status": {"replicas": len(self.pods), "selector": SELECTOR},
        }

    def _reconcile(self) -> None:
        staying = [pod for pod in self.pods.values() if not _leaves(pod)]
        staying.sort(key=_rank)
        for pod in staying[self.replicas :]:
            pod["metadata"]["deletionTimestamp"] = _now()
            self._later(self.drain_s, pod["metadata"]["name"], self._remove)
        for _ in range(min(self.replicas, self.quota) - len(staying)):
            self._make()

    def _make(self) -> None:
        self._made += 1
        name = f"{self.deployment}-{self._made:05d}"
        state = {"waiting": {"reason": self.waiting_reason or "ContainerCreating"}}
        status = {"name": "bul", "ready": False, "restartCount": 0, "state": state}
        status |= {"image": "bul", "imageID": ""}
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "creationTimestamp": _now(),
                "labels": {"app": "bul"},
            },
            "status": {"phase": "Pending", "containerStatuses": [status], "conditions": []},
        }
        if not self.waiting_reason:
            self._later(self.ready_s, name, self._ready)

    def _ready(self, name: str) -> None:
        if name in self.pods:
            status = self.pods[name]["status"]
            status["phase"], status["podIP"] = "Running", f"10.0.0.{int(name[-3:]) % 250 + 1}"
            status["conditions"] = [{"type": "Ready", "status": "True"}]
            status["containerStatuses"] = []

    def _remove(self, name: str) -> None:
        self.pods.pop(name, None)

    def _later(self, wait_s: float, name: str, what: Any) -> None:
        async def wait() -> None:
            await asyncio.sleep(wait_s)
            what(name)

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def kubernetes_stand_in(
    rbac: Path, folder: Path
) -> AsyncIterator[tuple[ClusterStandIn, str]]:
    """The stand-in, and the path of a kubeconfig that leads to it."""
    cluster = ClusterStandIn(rbac)
    runner = web.AppRunner(cluster.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        path = folder / "kubeconfig"
        path.write_text(_kubeconfig(f"http://{host}:{port}"))
        yield cluster, str(path)
    finally:
        await runner.cleanup()


def _kubeconfig(url: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": url}}],
            "users": [{"name": "scaler", "user": {"token": TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "scaler"}}],
        }
    )


def _grants(rbac: Path) -> set[tuple[str, str]]:
    documents = list(yaml.safe_load_all(rbac.read_text(encoding="utf-8")))
    (role,) = [document for document in documents if document["kind"] == "Role"]
    return {
        (verb, resource)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _verb(request: web.Request) -> tuple[str, str]:
    resource = "deployments/scale" if request.path.endswith("/scale") else "pods"
    if request.method == "GET":
        return ("list" if request.path.endswith("/pods") else "get"), resource
    return {"PUT": "update", "PATCH": "patch"}.get(request.method, request.method), resource


def _status(code: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    document = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code}
    return web.json_response(document | {"message": message}, status=code, headers=headers)


def _rank(pod: Mapping[str, Any]) -> tuple[int, int, str]:
    """Who stays: dear ones, then ready ones, then old ones; the order of a ReplicaSet, reversed."""
    annotations = pod["metadata"].get("annotations", {})
    cost = int(annotations.get("controller.kubernetes.io/pod-deletion-cost", "0"))
    ready = bool(pod["status"]["conditions"])
    return -cost, 0 if ready else 1, pod["metadata"]["name"]


def _leaves(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _now() -> str:
    return dt.datetime.now(tz=dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
