"""`[compose]`, `[kubernetes]` and `[ray]`: where replicas run when they are not child processes.

Refuses values out of range with a message that names the field and the legal range.
"""

from __future__ import annotations

import dataclasses

from bul.config.checks import in_range, whole
from bul.errors import ConfigError

__all__ = ["ComposeConfig", "KubernetesConfig", "RayConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ComposeConfig:
    """`[compose]`: containers of one Compose service, for `up.driver = "compose"`.

    engine: the socket's URL, "" for DOCKER_HOST or the default. network: of the containers; "host"
    puts them on loopback, number i on serve.port + i. command: to which `--host` and `--port` are
    added. environ: NAME=VALUE. volumes: HERE:INSIDE:ro or rw.
    """

    engine: str = ""
    project: str = "bul"
    service: str = "bul"
    image: str = "bul"
    network: str = "bridge"
    command: tuple[str, ...] = ("bul", "serve")
    environ: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    call_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        in_range("call_timeout_s", self.call_timeout_s, 0.1, 600)
        _pairs(self.environ)
        for volume in self.volumes:
            if volume.count(":") != 2 or volume.rpartition(":")[2] not in ("ro", "rw"):
                raise ConfigError(f"volumes must hold HERE:INSIDE:ro or rw, was {volume!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KubernetesConfig:
    """`[kubernetes]`: pods of one Deployment, for `up.driver = "kubernetes"`.

    kubeconfig: "" for the pod's own service account. port: of the container.
    """

    namespace: str = "default"
    deployment: str = "bul"
    port: int = 8002
    kubeconfig: str = ""
    call_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        whole("port", self.port, 1, 65535)
        in_range("call_timeout_s", self.call_timeout_s, 0.1, 600)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RayConfig:
    """`[ray]`: replicas spread over the nodes of a Ray cluster, for `up.driver = "ray"`.

    address: of the cluster, "auto" for the one that this node is part of. cpus, gpus: that one
    replica reserves. namespace: of the actors' names. environ: NAME=VALUE, of the replicas.
    """

    address: str = "auto"
    namespace: str = "bul"
    cpus: float = 1.0
    gpus: float = 0.0
    environ: tuple[str, ...] = ()
    call_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        in_range("cpus", self.cpus, 0, 1024)
        in_range("gpus", self.gpus, 0, 64)
        in_range("call_timeout_s", self.call_timeout_s, 0.1, 600)
        _pairs(self.environ)


def _pairs(environ: tuple[str, ...]) -> None:
    for pair in environ:
        if "=" not in pair:
            raise ConfigError(f"environ must hold NAME=VALUE, was {pair!r}")
