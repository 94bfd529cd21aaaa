"""The faults of `bench/faults.py` that need a real nginx in front: replicas restart, come and go.

Refuses to know the engine: on the timed one there are more requests of more tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from bul.router.nginx import NginxFront, render
from bul.testing.nginx import free_port, guide_conf, running_nginx
from bul.testing.replica_set import ReplicaSet
from bul.testing.request_load import RequestLoad

__all__ = ["Behind", "behind_nginx"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Behind:
    """The engine behind nginx and the load on it; restarts: names that restart in place.

    between: requests after each change. in_all: requests at least.
    """

    engine: str
    environ: Mapping[str, str]
    model: str
    clients: int
    max_tokens: int
    restarts: tuple[str, ...]
    between: int
    in_all: int
    start_s: float = 60.0


async def behind_nginx(folder: Path, behind: Behind, *, ours: bool) -> RequestLoad:
    """Three replicas; with our configuration one more comes and one goes, each with a reload."""
    port, file = free_port(), folder / "nginx.conf"

    def conf(urls: list[str]) -> str:
        if not ours:
            return guide_conf(urls, port, folder)
        listen = f"127.0.0.1:{port}"
        return render(NginxFront(upstreams=urls, listen=listen, folder=str(folder)))

    async with contextlib.AsyncExitStack() as stack:
        replicas = ReplicaSet(
            folder, stack, behind.environ, engine=behind.engine, start_s=behind.start_s
        )
        await replicas.start("a", "b", "c")
        file.write_text(conf(replicas.urls))
        nginx = await stack.enter_async_context(running_nginx(file, port))
        async with RequestLoad(
            nginx.url,
            clients=behind.clients,
            max_tokens=behind.max_tokens,
            stream_every=2,
            keep=False,
            model=behind.model,
        ) as load:
            await load.more(behind.between)
            for name in behind.restarts:
                await replicas.restart_in_place(name)
                await load.more(behind.between)
            if ours:
                await replicas.start("d")
                await nginx.reload(conf(replicas.urls))
                await load.more(2 * behind.between)
                replicas.forget("a")
                await nginx.reload(conf(replicas.urls))
                await replicas.remove("a")
            await load.more(max(2 * behind.between, behind.in_all - load.requests))
    return load
