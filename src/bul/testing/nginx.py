"""A real nginx for tests and benches, in the foreground and always ended.

Refuses to install anything: `tools/test-servers.sh` unpacks nginx beside the virtual environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bul.testing.waiting import eventually

__all__ = ["GUIDE_CONF", "Nginx", "check_conf", "free_port", "guide_conf", "running_nginx"]

PORT_FIRST, PORTS = 20_000, 12_000

GUIDE_CONF = """\
upstream bul_backend {{
    least_conn;  # Balanceador de carga
{servers}
}}

server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://bul_backend;
    }}
}}
"""
"""The scaling guide's snippet to the letter, but for the addresses and the `listen`."""


def guide_conf(upstreams: Sequence[str], port: int, folder: Path) -> str:
    """The guide's snippet within the least of a configuration that nginx starts with."""
    servers = "\n".join(f"    server {url.removeprefix('http://')};" for url in upstreams)
    snippet = GUIDE_CONF.format(servers=servers, port=port)
    temporary = "".join(
        f"{name}_temp_path {folder}/temporary; "
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{snippet}}}\n"
    )


def free_port() -> int:
    """A port that was free a moment ago: nginx cannot be asked which one it took.

    Below those that the system gives to outgoing connections: one of them might take it meanwhile.
    """
    while True:
        port = PORT_FIRST + secrets.randbelow(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _binary() -> str:
    found = shutil.which(Path(sys.prefix) / "opt" / "bin" / "nginx") or shutil.which("nginx")
    assert found, "no nginx: make servers"
    return found


async def check_conf(conf: Path) -> str:
    """What `nginx -t` has against it; "" for nothing."""
    process = await asyncio.create_subprocess_exec(
        *_command(conf, "-t", "-q"), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    return errors.decode() if process.returncode else ""


def _command(conf: Path, *flags: str) -> list[str]:
    return [_binary(), "-p", str(conf.parent), "-c", str(conf), *flags]


class Nginx:
    """A running nginx whose configuration is the file `conf`."""

    def __init__(self, process: asyncio.subprocess.Process, conf: Path, port: int) -> None:
        self._process = process
        self.conf = conf
        self.url = f"http://127.0.0.1:{port}"

    async def reload(self, text: str) -> None:
        """A new configuration; old workers end with their last answer."""
        self.conf.write_text(text)
        self._process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def running_nginx(conf: Path, port: int) -> AsyncIterator[Nginx]:
    """Run it with this configuration, which must listen on `port` of 127.0.0.1."""
    process = await asyncio.create_subprocess_exec(*_command(conf, "-g", "daemon off;"))
    try:
        await eventually("nginx listens", lambda: _listens(port))
        yield Nginx(process, conf, port)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
