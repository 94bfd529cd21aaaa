"""The control socket of a running region: one line of JSON asks, lines of JSON answer.

Refuses anybody but its owner: a Unix socket with mode 0600 in the state folder, no port. Commands
that change the region run one at a time, and end with the client that asked for them.

    -> {"command": "restart"}
    <- {"event": "progress", "text": "replica-0: replaced by replica-2", ...}
    <- {"event": "done", "result": {...}}        or {"event": "error", "text": "...", "hint": "..."}
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from bul.cli.state_folder import DEFAULT_FOLDER
from bul.errors import BulError, ConfigError, DriverError

__all__ = ["CONTROL_SOCKET", "Control", "Handler", "Progress", "ask_region"]

CONTROL_SOCKET = "control.sock"
LINE_BYTES_MAX = 65536
CLIENTS_MAX = 16
REQUEST_S = 5.0
"""From the connection to its request."""
PATH_BYTES_MAX = 100
"""A Unix socket's address holds 108 bytes; a state folder may lie deeper than that."""


class Progress(Protocol):
    """Tells the client a line: `text` for people, `facts` for machines."""

    def __call__(self, text: str, **facts: object) -> None: ...


Handler = Callable[[Mapping[str, Any], Progress], Awaitable[dict[str, object]]]


class Control:
    """Listens in `folder`, which its owner has locked. handlers: command -> what answers it."""

    def __init__(self, folder: Path, handlers: Mapping[str, Handler]) -> None:
        self._folder = folder
        self._path = folder / CONTROL_SOCKET
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. What a killed region left is removed: the folder's lock says that it is gone.

        Raises ConfigError.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            self._path.unlink(missing_ok=True)
            with _address(self._folder) as address:
                listener.bind(address)
            self._path.chmod(0o600)  # before listen: until then a connection is refused
        except OSError as error:
            listener.close()
            hint = "choose another folder with --state-dir"
            raise ConfigError(f"cannot make {self._path}: {error.strerror}", hint=hint) from error
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=LINE_BYTES_MAX
        )

    async def stop(self) -> None:
        """Break off what runs, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > CLIENTS_MAX:
                _tell(writer, "error", f"more than {CLIENTS_MAX} clients")
            else:
                await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the end of this connection, whoever made it
        finally:
            self._clients.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One command. Ends it when the client leaves before it is done."""
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_S)
            work = asyncio.ensure_future(self._run(line, writer))
        except ValueError:
            _tell(writer, "error", f"a request has at most {LINE_BYTES_MAX} bytes")
            return
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            left.cancel()
            await asyncio.gather(work, left, return_exceptions=True)
        await writer.drain()

    async def _run(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        def progress(text: str, **facts: object) -> None:
            _tell(writer, "progress", text, **facts)

        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            handler = self._handlers[request["command"]]
        except (msgspec.DecodeError, KeyError, TypeError):
            known = ", ".join(self._handlers)
            _tell(writer, "error", 'a request is {"command": NAME}', hint=f"names: {known}")
            return
        try:
            result = await handler(request, progress)
        except BulError as error:
            _tell(writer, "error", str(error.args[0]), hint=error.hint)
        else:
            _tell(writer, "done", "done", result=result)


def ask_region(
    state_dir: str, command: str, progress: Progress, **arguments: object
) -> dict[str, Any]:
    """The result of a command to the region that runs in `state_dir`. Runs an event loop.

    Raises DriverError if none runs there, and for what it refuses or cannot do.
    """
    folder = Path(state_dir or DEFAULT_FOLDER).resolve()
    return asyncio.run(_ask(folder, {"command": command, **arguments}, progress))


async def _ask(folder: Path, request: dict[str, object], progress: Progress) -> dict[str, Any]:
    reader, writer = await _connect(folder)
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        async for line in reader:
            said = msgspec.json.decode(line, type=dict[str, Any])
            kind, text = said.pop("event"), said.pop("text")
            if kind == "done":
                result: dict[str, Any] = said["result"]
                return result
            if kind == "error":
                raise DriverError(text, hint=said.get("hint", ""))
            progress(text, **said)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise DriverError(f"the region in {folder} broke off: {error}") from error
    finally:
        writer.close()
    raise DriverError(f"the region in {folder} ended meanwhile")


async def _connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        with _address(folder) as address:
            return await asyncio.open_unix_connection(address, limit=LINE_BYTES_MAX)
    except OSError as error:
        hint = "start one with: bul up, or name its folder with --state-dir"
        raise DriverError(f"no region runs in {folder}", hint=hint) from error


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket's path, through an open descriptor of the folder where it would be too long."""
    path = str(folder / CONTROL_SOCKET)
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield path
        return
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{CONTROL_SOCKET}"
    finally:
        os.close(descriptor)


def _tell(writer: asyncio.StreamWriter, event: str, text: str, **facts: object) -> None:
    writer.write(msgspec.json.encode({"event": event, "text": text, **facts}) + b"\n")
