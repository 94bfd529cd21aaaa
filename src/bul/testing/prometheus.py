"""A real Prometheus, Alertmanager and webhook for tests: on free ports, always ended.

Refuses to install anything: `tools/test-servers.sh` unpacks the two beside the virtual environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import yaml

from bul.testing.nginx import free_port
from bul.testing.waiting import eventually

__all__ = ["Webhook", "promtool", "running_alertmanager", "running_prometheus", "running_webhook"]


def _binary(name: str) -> str:
    found = Path(sys.prefix) / "opt" / "bin" / name
    assert found.exists(), f"no {name}: make servers"
    return str(found)


async def promtool(*arguments: str | Path) -> tuple[int, str]:
    """Exit code, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        _binary("promtool"),
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


class Webhook:
    """What was delivered: one JSON text a request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []


@contextlib.asynccontextmanager
async def running_webhook() -> AsyncIterator[Webhook]:
    """Takes every POST and says 200."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            hook.bodies.append(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    hook = Webhook(f"http://{host}:{port}/alerts")
    async with server:
        yield hook


@contextlib.asynccontextmanager
async def running_alertmanager(folder: Path, webhook: str) -> AsyncIterator[str]:
    """Its URL; what reaches it goes to `webhook` at once."""
    conf = folder / "alertmanager.yml"
    route = {"receiver": "hook", "group_wait": "0s", "group_interval": "1s"}
    receivers = [{"name": "hook", "webhook_configs": [{"url": webhook}]}]
    conf.write_text(yaml.safe_dump({"route": route, "receivers": receivers}), encoding="utf-8")
    port = free_port()
    command = [
        _binary("alertmanager"),
        f"--config.file={conf}",
        f"--storage.path={folder / 'alerts'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    async with _running(command, f"http://127.0.0.1:{port}", folder / "alertmanager.log") as url:
        yield url


@contextlib.asynccontextmanager
async def running_prometheus(
    folder: Path,
    *,
    rules: Path,
    targets: Sequence[str],
    alertmanager: str,
    key: Path | None = None,
) -> AsyncIterator[str]:
    """Its URL; scrapes host:port `targets` every second. key: a file with the operator's."""
    scrape: dict[str, object] = {"job_name": "bul", "static_configs": [{"targets": [*targets]}]}
    if key is not None:
        scrape["authorization"] = {"credentials_file": str(key)}
    managers = [{"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}]
    conf = folder / "prometheus.yml"
    document = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "alerting": {"alertmanagers": managers},
        "scrape_configs": [scrape],
    }
    conf.write_text(yaml.safe_dump(document), encoding="utf-8")
    port = free_port()
    command = [
        _binary("prometheus"),
        f"--config.file={conf}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with _running(command, f"http://127.0.0.1:{port}", folder / "prometheus.log") as url:
        yield url


@contextlib.asynccontextmanager
async def _running(command: Sequence[str], url: str, log: Path) -> AsyncIterator[str]:
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(*command, stdout=said, stderr=said)
    try:
        async with httpx.AsyncClient(timeout=2.0) as client:

            async def ready() -> bool:
                assert process.returncode is None, f"it ended at once: see {log}"
                try:
                    return (await client.get(f"{url}/-/ready")).status_code == httpx.codes.OK
                except httpx.HTTPError:
                    return False

            await eventually(f"{Path(command[0]).name} is ready", ready)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)
