"""A real PostgreSQL for tests: a cluster of its own, on a free port, stopped and started at will.

Refuses to run as root, as PostgreSQL does: there it becomes `nobody`, in a folder of its own.
Refuses to install anything: `tools/test-servers.sh` unpacks it beside the virtual environment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from bul.testing.nginx import free_port

__all__ = ["Postgres", "running_postgres"]

NOBODY = 65534
START_S = 30.0


class Postgres:
    """A cluster; `url` stays the same over stops and starts."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        password = secrets.token_urlsafe(16)
        word = folder / "password"
        word.write_text(password, encoding="utf-8")
        if os.getuid() == 0:
            for path in (folder, word):
                os.chown(path, NOBODY, NOBODY)
        self._run(
            "initdb", "-D", self._data, "-U", "bul", "-A", "scram-sha-256", f"--pwfile={word}", "-N"
        )
        self.url = f"postgresql://bul:{password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Returns once it answers."""
        command = self._command(
            "postgres",
            *("-D", self._data, "-p", str(self._port), "-k", "", "-h", "127.0.0.1"),
            *("-c", "fsync=off", "-c", "logging_collector=off"),
        )
        with self._log.open("ab") as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=said, cwd="/")  # noqa: S603 - a server of ours
        engine = sa.create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"))
        end_s = time.monotonic() + START_S
        while True:
            try:
                with engine.connect():
                    break
            except sa.exc.OperationalError:
                assert time.monotonic() < end_s, self._log.read_text(encoding="utf-8")[-2000:]
                time.sleep(0.05)
        engine.dispose()

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
        self._process = None

    def _run(self, name: str, *arguments: str | Path) -> None:
        command = self._command(name, *arguments)
        subprocess.run(command, check=True, capture_output=True, cwd="/")  # noqa: S603 - a server of ours

    def _command(self, name: str, *arguments: str | Path) -> Sequence[str | Path]:
        binary = Path(sys.prefix) / "opt/postgresql/pgserver/pginstall/bin" / name
        assert binary.exists(), f"no {name}: make servers"
        become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
        return [*(become if os.getuid() == 0 else []), binary, *arguments]


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Started, and gone with its folder afterwards."""
    # Not in pytest's folder: nobody else than its owner gets through that one.
    folder = Path(tempfile.mkdtemp(prefix="bul-postgres-"))
    try:
        postgres = Postgres(folder)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
