"""One server: a bounded pool of redis-py connections, and commands sent in one go.

Refuses to retry (what failed is a miss, and the breaker's business) and to use a connection again
after anything went wrong on it: replies that are late must not answer later questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import (
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ResponseError
from redis.retry import Retry

from bul.config.shared_url import SharedAddress

__all__ = ["Command", "ConnectionPlan", "Node", "Reply"]

Command = Sequence[bytes | str | int]
Reply = Any
"""bytes, int, a list of these, None, or the exception that the server answered with."""

READ_BYTES = 1 << 20
"""A block is a megabyte or more: redis-py's default of 32 KiB costs a third of the speed."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionPlan:
    """How to connect. timeout_s: of a connection, and of silence while an answer is due."""

    address: SharedAddress
    timeout_s: float
    connections_max: int
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    read_only: bool = False
    """Ask replicas of a cluster as well."""

    def pool(self, host: str, port: int) -> Any:
        """A pool of connections to one server; the Unix socket's path is the address's."""
        address = self.address
        options: dict[str, Any] = {
            "username": address.username or None,
            "password": address.password or None,
            "db": address.database,
        }
        return self._pool(host, port, options | self._hook())

    def sentinel_options(self) -> Mapping[str, Any]:
        """For connections to the sentinels, which have no databases."""
        address = self.address
        common = self._common() | self._tls()
        return common | {
            "ssl": address.tls,
            "username": address.username or None,
            "password": address.password or None,
        }

    def _pool(self, host: str, port: int, options: dict[str, Any]) -> Any:
        make: Any = BlockingConnectionPool  # untyped, as all of it
        kind: type[Any] = Connection
        if self.address.path:
            kind = UnixDomainSocketConnection
            options["path"] = self.address.path
        else:
            kind = SSLConnection if self.address.tls else Connection
            options |= {"host": host, "port": port} | self._tls()
        return make(
            max_connections=self.connections_max,
            timeout=self.timeout_s,
            connection_class=kind,
            **(self._common() | options),
        )

    def _common(self) -> dict[str, Any]:
        return {
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.timeout_s,
            "socket_read_size": READ_BYTES,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "driver_info": None,
        }

    def _tls(self) -> dict[str, Any]:
        if not self.address.tls:
            return {}
        return {
            "ssl_ca_certs": self.ca_file or None,
            "ssl_certfile": self.cert_file or None,
            "ssl_keyfile": self.key_file or None,
        }

    def _hook(self) -> dict[str, Any]:
        return {"redis_connect_func": _connect_to_read} if self.read_only else {}


def _connect_to_read(connection: Any) -> None:
    """A replica sends away who has not said READONLY. Blocks are immutable: none is stale."""
    connection.on_connect()
    connection.send_command("READONLY")
    connection.read_response()


class Node:
    """One server. Any thread."""

    def __init__(self, plan: ConnectionPlan, host: str, port: int) -> None:
        self.name = plan.address.path or f"{host}:{port}"
        self._pool = plan.pool(host, port)

    def send(self, commands: Sequence[Command]) -> Callable[[], list[Reply]]:
        """Send; the function that is returned must be called once, and reads the replies.

        Both raise what redis-py or its parser raises; then nothing is left to be read.
        """
        connection = self._pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except BaseException:
            self._give_up(connection)
            raise

        def receive() -> list[Reply]:
            try:
                replies = [_read(connection) for _ in commands]
            except BaseException:
                self._give_up(connection)
                raise
            self._pool.release(connection)
            return replies

        return receive

    def ask(self, *commands: Command) -> list[Reply]:
        """Send and receive."""
        return self.send(commands)()

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

    def _give_up(self, connection: Any) -> None:
        connection.disconnect()
        self._pool.release(connection)


def _read(connection: Any) -> Reply:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
