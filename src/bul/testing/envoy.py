"""A real Envoy for tests, always ended. Refuses to install anything: see tools/test-servers.sh."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bul.router.envoy import ENDPOINTS_FILE, EnvoyFront, render_bootstrap, render_endpoints
from bul.testing.waiting import eventually

__all__ = ["Envoy", "running_envoy"]


class Envoy:
    """A running one; `serve` changes whom it sends to."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self.url = f"http://127.0.0.1:{port}"

    def serve(self, upstreams: Sequence[str]) -> None:
        """Moves the file into place, which is what Envoy watches for."""
        new = self._folder / f".{ENDPOINTS_FILE}"
        new.write_text(render_endpoints(upstreams))
        new.replace(self._folder / ENDPOINTS_FILE)


@contextlib.asynccontextmanager
async def running_envoy(folder: Path, port: int, upstreams: Sequence[str]) -> AsyncIterator[Envoy]:
    """Run it on `port` of loopback before these upstreams."""
    binary = shutil.which(Path(sys.prefix) / "opt" / "bin" / "envoy") or shutil.which("envoy")
    assert binary, "no envoy: tools/test-servers.sh nightly"
    envoy = Envoy(folder, port)
    envoy.serve(upstreams)
    conf = folder / "envoy.json"
    conf.write_text(render_bootstrap(EnvoyFront(listen=f"127.0.0.1:{port}", folder=str(folder))))
    flags = ["-c", str(conf), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    process = await asyncio.create_subprocess_exec(
        binary, *flags, cwd=folder, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await eventually("envoy listens", lambda: _listens(port))
        yield envoy
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
