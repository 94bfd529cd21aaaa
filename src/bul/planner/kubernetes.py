"""Kubernetes manifests of a plan, as documents by file name.

Refuses a scaler beside BUL's own unless it is asked for: two loops on one Deployment fight.
`bul scale` needs `scale` on the Deployment and nothing more; that is all its Role grants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from bul.errors import ConfigError
from bul.planner.compose import FIRST_PHASE_OF_SEVERAL, replicas
from bul.planner.plan import Plan

__all__ = ["AUTOSCALERS", "HEADERS", "render"]

Document = Mapping[str, object]

AUTOSCALERS = ("", "hpa", "keda")
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "bul.yaml": "# The Secret `bul` holds bul.toml:\n"
        "#   kubectl create secret generic bul --from-file=bul.toml\n",
    }
)
DRAIN_S = 30
PRE_STOP_S = 5
"""Endpoints are taken out while the pod still answers; only then comes SIGTERM and the drain."""


def render(plan: Plan, *, autoscaler: str = "") -> Mapping[str, Sequence[Document]]:
    """File name -> documents. Raises ConfigError."""
    if autoscaler not in AUTOSCALERS:
        raise ConfigError(f"unknown autoscaler: {autoscaler}", hint="hpa or keda")
    routers = 1 if plan.question.phase.number < FIRST_PHASE_OF_SEVERAL else 2
    files: dict[str, Sequence[Document]] = {
        "bul.yaml": [
            _deployment("bul", replicas(plan), ["serve", "--host", "0.0.0.0"], 8002),  # noqa: S104 - in its pod; keys are set
            _service("bul", 8002, headless=True),
            _budget("bul", {"maxUnavailable": 1}),
        ],
        "router.yaml": [
            _deployment(
                "bul-router",
                routers,
                ["route", "--host", "0.0.0.0", "--discover", "http://bul:8002"],  # noqa: S104 - in its pod; keys are set
                8000,
            ),
            _service("bul-router", 8000, headless=False),
            _budget("bul-router", {"minAvailable": 1}),
        ],
        "rbac.yaml": _rbac(),
    }
    if plan.question.phase.number >= FIRST_PHASE_OF_SEVERAL:
        files["valkey.yaml"] = _valkey()
    if autoscaler:
        files["autoscaler.yaml"] = [_hpa(plan) if autoscaler == "hpa" else _keda(plan)]
    return files


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bul"}


def _deployment(name: str, count: int, command: Sequence[str], port: int) -> Document:
    container = {
        "name": name,
        "image": "bul:local",
        "args": list(command),
        "ports": [{"name": "http", "containerPort": port}],
        "startupProbe": _probe("/ready", period=2, failures=150),
        "readinessProbe": _probe("/ready", period=2, failures=2),
        "livenessProbe": _probe("/health", period=10, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/bul", "readOnly": True},
            {"name": "kv", "mountPath": "/var/lib/bul"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": PRE_STOP_S + DRAIN_S + 10,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "fsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(name)},
            }
        ],
        "containers": [container],
        "volumes": [
            {"name": "config", "secret": {"secretName": "bul"}},
            {"name": "kv", "emptyDir": {}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "replicas": count,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "selector": {"matchLabels": _labels(name)},
            "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
        },
    }


def _probe(path: str, *, period: int, failures: int) -> Document:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 2,
    }


def _service(name: str, port: int, *, headless: bool) -> Document:
    spec: dict[str, object] = {
        "selector": _labels(name),
        "ports": [{"name": "http", "port": port, "targetPort": "http"}],
    }
    if headless:
        spec["clusterIP"] = "None"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": spec,
    }


def _budget(name: str, limit: Mapping[str, int]) -> Document:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": _labels(name)}, **limit},
    }


def _rbac() -> Sequence[Document]:
    scale = {
        "apiGroups": ["apps"],
        "resources": ["deployments/scale"],
        "resourceNames": ["bul"],
        "verbs": ["get", "patch", "update"],
    }
    look = {
        "apiGroups": ["apps"],
        "resources": ["deployments"],
        "resourceNames": ["bul"],
        "verbs": ["get"],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "bul-scaler"},
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "bul-scaler"},
            "rules": [scale, look],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "bul-scaler"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "bul-scaler",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "bul-scaler"}],
        },
    ]


def _valkey() -> Sequence[Document]:
    container = {
        "name": "valkey",
        "image": "valkey/valkey:8",
        "args": ["valkey-server", "/etc/valkey/valkey.conf"],
        "ports": [{"name": "valkey", "containerPort": 6379}],
        "readinessProbe": {"tcpSocket": {"port": "valkey"}, "periodSeconds": 2},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/valkey", "readOnly": True}],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "valkey", "labels": _labels("valkey")},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _labels("valkey")},
            "template": {
                "metadata": {"labels": _labels("valkey")},
                "spec": {
                    "automountServiceAccountToken": False,
                    "containers": [container],
                    "volumes": [{"name": "config", "secret": {"secretName": "valkey"}}],
                },
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "valkey", "labels": _labels("valkey")},
        "spec": {
            "selector": _labels("valkey"),
            "ports": [{"name": "valkey", "port": 6379, "targetPort": "valkey"}],
        },
    }
    return [deployment, service]


def _hpa(plan: Plan) -> Document:
    assert plan.fleet is not None
    in_slots = str(max(1, int(plan.question.profile.slots * 0.75)))
    metric = {
        "type": "Pods",
        "pods": {
            "metric": {"name": "bul_requests_running"},
            "target": {"type": "AverageValue", "averageValue": in_slots},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "bul"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bul"},
            "minReplicas": plan.fleet.replicas_min,
            "maxReplicas": plan.fleet.replicas_max,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
    }


def _keda(plan: Plan) -> Document:
    assert plan.fleet is not None
    in_slots = str(max(1, int(plan.question.profile.slots * 0.75)))
    trigger = {
        "type": "prometheus",
        "metadata": {
            "serverAddress": "http://prometheus:9090",
            "query": "sum(bul_requests_running) + sum(bul_requests_waiting)",
            "threshold": in_slots,
        },
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "bul"},
        "spec": {
            "scaleTargetRef": {"name": "bul"},
            "minReplicaCount": plan.fleet.replicas_min,
            "maxReplicaCount": plan.fleet.replicas_max,
            "cooldownPeriod": 600,
            "triggers": [trigger],
        },
    }
