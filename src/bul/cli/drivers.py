"""Which driver starts a region's replicas: `up.driver`, made from the settings.

Refuses to hand a replica what holds on this machine alone: containers and actors get the settings,
but neither this machine's settings file nor its folders.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from bul.config import Settings, child_environment
from bul.errors import DriverError
from bul.scaling.drivers.contract import Driver, Replica
from bul.scaling.drivers.process import ProcessDriver

__all__ = ["Members", "make_driver"]

POLL_S = 0.5
STOP_MARGIN_S = 5.0


def make_driver(
    settings: Settings, replicas_max: int, make_process: Callable[[], ProcessDriver]
) -> Driver:
    """Raises ConfigError when the driver's extra is not installed."""
    if settings.up.driver == "process":
        return make_process()
    if settings.up.driver == "compose":
        return _compose(settings, replicas_max)
    if settings.up.driver == "kubernetes":
        return _kubernetes(settings, replicas_max)
    return _ray(settings, replicas_max)


def _compose(settings: Settings, replicas_max: int) -> Driver:
    from bul.scaling.drivers.compose import ComposePlan, compose_driver

    config = settings.compose
    host = "127.0.0.1" if config.network == "host" else "0.0.0.0"  # noqa: S104 - in its own network; replicas refuse it without a key

    def command(port: int) -> Sequence[str]:
        return [*config.command, "--host", host, "--port", str(port)]

    return compose_driver(
        ComposePlan(
            project=config.project,
            service=config.service,
            image=config.image,
            command=command,
            environ=_settings_alone(settings) | _pairs(config.environ),
            volumes=[_volume(text) for text in config.volumes],
            network=config.network,
            port=settings.serve.port or 8002,
            drain_s=settings.serve.drain_s + STOP_MARGIN_S,
            engine=config.engine,
            call_s=config.call_timeout_s,
            replicas_max=replicas_max,
        )
    )


def _kubernetes(settings: Settings, replicas_max: int) -> Driver:
    from bul.scaling.drivers.kubernetes import KubernetesPlan, kubernetes_driver

    config = settings.kubernetes
    return kubernetes_driver(
        KubernetesPlan(
            namespace=config.namespace,
            deployment=config.deployment,
            port=config.port,
            kubeconfig=config.kubeconfig,
            call_s=config.call_timeout_s,
            replicas_max=replicas_max,
        )
    )


def _ray(settings: Settings, replicas_max: int) -> Driver:
    from bul.scaling.drivers.ray import RayPlan, ray_driver

    config = settings.ray
    return ray_driver(
        RayPlan(
            address=config.address,
            namespace=config.namespace,
            environ=_settings_alone(settings) | _pairs(config.environ),
            cpus=config.cpus,
            gpus=config.gpus,
            drain_s=settings.serve.drain_s + STOP_MARGIN_S,
            call_s=config.call_timeout_s,
            replicas_max=replicas_max,
        )
    )


def _pairs(environ: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (pair.partition("=") for pair in environ)}


def _volume(text: str) -> tuple[str, str, str]:
    here, inside, mode = text.split(":")
    return here, inside, mode


def _settings_alone(settings: Settings) -> dict[str, str]:
    """The settings as variables, without what is of this machine or of `bul up`."""
    local = ("BUL_CONFIG", "BUL_SERVE_HOST", "BUL_SERVE_PORT")
    changes = {"up.log_format": "json", "route.resume_secret": settings.route.resume_secret}
    environ = child_environment(settings, changes, environ={})
    return {
        name: value
        for name, value in environ.items()
        if name not in local and not name.startswith(("BUL_COMPOSE_", "BUL_RAY_", "BUL_KUBERNETES"))
    }


class Members:
    """Tells what a driver without events of its own shows: looked at twice a second.

    on_change: called with a replica whose state is new, and "stopped" ones once.
    """

    def __init__(self, driver: Driver, on_change: Callable[[Replica], None]) -> None:
        self._driver = driver
        self._on_change = on_change
        self._known: Mapping[str, Replica] = {}

    async def run(self) -> None:
        """Until cancelled. A driver that does not answer changes nothing."""
        while True:
            with contextlib.suppress(DriverError):
                self.see(await self._driver.replicas())
            await asyncio.sleep(POLL_S)

    def see(self, replicas: Sequence[Replica]) -> None:
        """One listing; `on_change` is called after `ready_urls` is up to date."""
        before, self._known = self._known, {replica.name: replica for replica in replicas}
        for name, replica in self._known.items():
            if before.get(name) != replica:
                self._on_change(replica)
        for name in before.keys() - self._known.keys():
            self._on_change(Replica(name=name, url=before[name].url, state="draining"))

    @property
    def ready_urls(self) -> list[str]:
        return [one.url for one in self._known.values() if one.state == "ready"]
