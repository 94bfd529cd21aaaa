"""Real Valkey and Redis servers for tests and benches: one, a cluster, sentinels; always ended.

Refuses to install anything (`tools/test-servers.sh` unpacks the servers beside the virtual
environment), to listen beyond loopback unless told, and to run without a password. TLS needs Redis:
the wheel's Valkey is built without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
import trustme

from bul.cache.tiers.shared.tier import ACL, SENTINEL_ACL

__all__ = [
    "PASSWORD",
    "USER",
    "TlsFiles",
    "Valkey",
    "make_tls_files",
    "running_cluster",
    "running_sentinels",
    "running_valkey",
    "until",
]

USER, PASSWORD = "bul", "a secret of the tests"
QUOTED_PASSWORD = "a%20secret%20of%20the%20tests"  # noqa: S105 - of servers that live for one test
START_S = 10.0
SLOTS = 16384


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of an authority and of one certificate for 127.0.0.1, for both ends."""

    ca: Path
    cert: Path
    key: Path


def make_tls_files(folder: Path) -> TlsFiles:
    """A new authority's. About 10 ms."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = TlsFiles(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(files.ca)
    issued.private_key_pem.write_to_path(files.key)
    issued.cert_chain_pems[0].write_to_path(files.cert)
    return files


def until(what: str, predicate: Callable[[], bool], deadline_s: float = START_S) -> None:
    """Return once `predicate()` is true; redis-py's errors count as not yet."""
    end_s = time.monotonic() + deadline_s
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if predicate():
                return
        assert time.monotonic() < end_s, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


class Valkey:
    """One server on a port of its own. `url` has the credentials."""

    def __init__(
        self,
        folder: Path,
        *,
        lines: Sequence[str] = (),
        tls: TlsFiles | None = None,
        sentinel: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = host
        self.port = _free_port()
        self.tls = tls
        self._lines = lines
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{USER}:{QUOTED_PASSWORD}@{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, also again after `kill`; returns when it answers."""
        self.spawn()
        self.wait_answers()

    def spawn(self) -> None:
        """Start; it may not answer yet."""
        config = self.folder / "server.conf"
        config.write_text("\n".join([*self._config(), *self._lines, ""]))
        log = self.folder / "server.log"
        command = [_binary(tls=self.tls is not None), str(config)]
        command += ["--sentinel"] if self._sentinel else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own server
                command, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_answers(self) -> None:
        """Returns when it answers."""
        until(f"server answers; see {self.folder}/server.log", self._answers)

    def client(self, *, user: str = "default") -> Any:
        """redis-py's own client, of the almighty user unless named otherwise."""
        options: dict[str, Any] = {}
        if self.tls is not None:
            options = {
                "ssl": True,
                "ssl_ca_certs": str(self.tls.ca),
                "ssl_certfile": str(self.tls.cert),
                "ssl_keyfile": str(self.tls.key),
            }
        # RESP 2: in RESP 3 this client asks for messages that Valkey does not know.
        return redis.Redis(
            port=self.port,
            host=self.host,
            username=user,
            password=PASSWORD,
            protocol=2,
            **options,
        )

    def ask(self, *command: str | int) -> Any:
        """One command of the almighty user."""
        with self.client() as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        return bool(self.ask("PING"))

    def _config(self) -> list[str]:
        lines = [
            f"bind {self.host}",
            'save ""',
            "appendonly no",
            f"dir {self.folder}",
            "daemonize no",
            f'user default on ">{PASSWORD}" ~* &* +@all',
            f'user {USER} on ">{PASSWORD}" {ACL}',
            "repl-diskless-sync-delay 0",
            # A replica counts once it has heard something of its primary.
            "repl-ping-replica-period 1",
        ]
        if self._sentinel:
            lines = [*lines[:1], *lines[3:6], f'user {USER} on ">{PASSWORD}" {SENTINEL_ACL}']
        if self.tls is None:
            return [*lines, f"port {self.port}"]
        return [
            *lines,
            "port 0",
            f"tls-port {self.port}",
            f"tls-cert-file {self.tls.cert}",
            f"tls-key-file {self.tls.key}",
            f"tls-ca-cert-file {self.tls.ca}",
            "tls-auth-clients yes",
            "tls-replication yes",
            "tls-cluster yes",
        ]


@contextlib.contextmanager
def running_valkey(
    folder: Path,
    *,
    lines: Sequence[str] = (),
    tls: TlsFiles | None = None,
    host: str = "127.0.0.1",
) -> Iterator[Valkey]:
    """One server; `lines` are added to its configuration. host: beyond loopback for `net_hosts`."""
    server = Valkey(folder, lines=lines, tls=tls, host=host)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def running_cluster(
    folder: Path, *, primaries: int = 3, replicas: bool = True, tls: TlsFiles | None = None
) -> Iterator[Sequence[Valkey]]:
    """A cluster: the primaries first, then a replica of each, in the same order."""
    lines = (
        "cluster-enabled yes",
        "cluster-node-timeout 1000",
        # What is left is served while a primary has no successor yet.
        "cluster-require-full-coverage no",
        "masteruser default",
        f'masterauth "{PASSWORD}"',
    )
    count = primaries * (2 if replicas else 1)
    servers = [Valkey(folder / f"node{i}", lines=lines, tls=tls) for i in range(count)]
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_answers()
        _form(servers, primaries)
        yield servers
    finally:
        for server in servers:
            server.close()


@contextlib.contextmanager
def running_sentinels(
    folder: Path, *, service: str = "main"
) -> Iterator[tuple[Valkey, Valkey, Valkey]]:
    """A primary, its replica, and one sentinel that watches them."""
    auth = ("masteruser default", f'masterauth "{PASSWORD}"')
    primary = Valkey(folder / "primary", lines=auth)
    replica = Valkey(folder / "replica", lines=(*auth, f"replicaof 127.0.0.1 {primary.port}"))
    sentinel = Valkey(
        folder / "sentinel",
        sentinel=True,
        lines=(
            f"sentinel monitor {service} 127.0.0.1 {primary.port} 1",
            f"sentinel auth-user {service} default",
            f'sentinel auth-pass {service} "{PASSWORD}"',
            f"sentinel down-after-milliseconds {service} 500",
            f"sentinel failover-timeout {service} 2000",
        ),
    )
    try:
        for server in (primary, replica, sentinel):
            server.start()
        until(
            "the sentinel knows the replica",
            lambda: (
                len(sentinel.ask("SENTINEL", "REPLICAS", service)) == 1
                and b"master_link_status:up" in _info(replica, "replication")
            ),
        )
        yield primary, replica, sentinel
    finally:
        for server in (sentinel, replica, primary):
            server.close()


def _form(servers: Sequence[Valkey], primaries: int) -> None:
    # Each with each: what they tell each other goes round once a second.
    for first, second in itertools.combinations(servers, 2):
        first.ask("CLUSTER", "MEET", "127.0.0.1", second.port)
    share = -(-SLOTS // primaries)
    for number, server in enumerate(servers[:primaries]):
        end = min(SLOTS, (number + 1) * share) - 1
        server.ask("CLUSTER", "ADDSLOTSRANGE", number * share, end)
    ids = [server.ask("CLUSTER", "MYID") for server in servers]
    for number, server in enumerate(servers[primaries:]):
        primary = ids[number]

        def follows(server: Valkey = server, primary: bytes = primary) -> bool:
            return bool(server.ask("CLUSTER", "REPLICATE", primary.decode()))

        until("the replica knows its primary", follows)
    for server in servers:
        until(
            "everybody knows everybody",
            lambda server=server: _formed(server, len(servers)),  # type: ignore[misc]  # bound
        )


def _formed(server: Valkey, count: int) -> bool:
    info = server.ask("CLUSTER", "INFO")
    text = info if isinstance(info, bytes) else str(info).encode()
    known = b"cluster_state:ok" in text and f"cluster_known_nodes:{count}".encode() in text
    linked = _info(server, "replication")
    slots = server.ask("CLUSTER", "SLOTS")
    here = sum(len(entry) - 2 for entry in slots)
    return known and here == count and b"master_link_status:down" not in linked


def _info(server: Valkey, section: str) -> bytes:
    with server.client() as client:
        client.response_callbacks.clear()
        found = client.execute_command("INFO", section)
        assert isinstance(found, bytes)
        return found


def _free_port() -> int:
    """One whose cluster bus port, 10,000 above, is a port as well."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


def _binary(*, tls: bool) -> str:
    names = ("redis-server",) if tls else ("valkey-server", "redis-server")
    beside = Path(sys.prefix) / "opt" / "bin"
    for name in names:
        found = shutil.which(beside / name) or shutil.which(name)
        if found:
            return found
    raise AssertionError(f"no {' or '.join(names)}: make servers")
