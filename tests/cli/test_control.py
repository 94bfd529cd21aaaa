"""The control socket alone: what it answers, whom it refuses, and how a command ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bul.cli import control
from bul.cli.control import Control, Progress, ask_region
from bul.errors import DriverError
from bul.testing.waiting import eventually


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Commands:
    """Handlers that tests can look into."""

    def __init__(self) -> None:
        self.cancelled = False

    async def echo(self, request: Mapping[str, Any], progress: Progress) -> dict[str, object]:
        progress("on its way", step=1)
        return {"said": request.get("text", "")}

    async def refuse(self, request: Mapping[str, Any], progress: Progress) -> dict[str, object]:
        raise DriverError("no", hint="ask again")

    async def last(self, request: Mapping[str, Any], progress: Progress) -> dict[str, object]:
        progress("begun")
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True
        return {}


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
async def folder(tmp_path: Path, commands: Commands) -> AsyncIterator[Path]:
    handlers = {"echo": commands.echo, "refuse": commands.refuse, "last": commands.last}
    running = Control(tmp_path, handlers)
    await running.start()
    yield tmp_path
    await running.stop()
    assert names_in(tmp_path) == []


async def ask(folder: Path, command: str, **arguments: object) -> tuple[dict[str, Any], list[str]]:
    """As a client in another thread, which has its own event loop."""
    told: list[str] = []

    def progress(text: str, **_: object) -> None:
        told.append(text)

    return await asyncio.to_thread(ask_region, str(folder), command, progress, **arguments), told


async def connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(folder / control.CONTROL_SOCKET))


async def test_a_command_tells_its_progress_and_then_its_result(folder: Path) -> None:
    assert await ask(folder, "echo", text="hello") == ({"said": "hello"}, ["on its way"])


async def test_a_refusal_is_an_error_with_its_hint(folder: Path) -> None:
    with pytest.raises(DriverError, match=r"no \(ask again\)"):
        await ask(folder, "refuse")


async def test_an_unknown_command_names_the_known_ones(folder: Path) -> None:
    with pytest.raises(DriverError, match="echo, refuse, last"):
        await ask(folder, "restrat")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"no json\n", b"[]\n", b'{"command":["echo"]}\n', b"\xff\xfe\n", b"x" * 70_000 + b"\n"],
    ids=lambda line: repr(line[:20]),
)
async def test_what_is_no_request_gets_one_error_line(folder: Path, line: bytes) -> None:
    reader, writer = await connect(folder)
    writer.write(line)
    said = msgspec.json.decode(await reader.readline(), type=dict[str, Any])
    assert said["event"] == "error"
    assert await reader.read() == b""
    writer.close()
    assert (await ask(folder, "echo"))[0] == {"said": ""}


async def test_a_command_ends_with_the_client_that_left(folder: Path, commands: Commands) -> None:
    reader, writer = await connect(folder)
    writer.write(b'{"command":"last"}\n')
    assert b"begun" in await reader.readline()
    writer.close()
    await eventually("it is cancelled", lambda: commands.cancelled)


async def test_one_client_too_many_is_told_so(folder: Path) -> None:
    many = [await connect(folder) for _ in range(control.CLIENTS_MAX)]
    for _, writer in many:
        writer.write(b'{"command":"last"}\n')
    for reader, _ in many:
        assert b"begun" in await reader.readline()
    reader, writer = await connect(folder)
    assert b"more than 16 clients" in await reader.readline()
    for _, open_writer in (*many, (reader, writer)):
        open_writer.close()


async def test_a_deep_folder_is_no_obstacle(tmp_path: Path, commands: Commands) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    running = Control(deep, {"echo": commands.echo})
    await running.start()
    assert (await ask(deep, "echo", text="deep"))[0] == {"said": "deep"}
    await running.stop()
    assert names_in(deep) == []


async def test_where_no_region_runs_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="start one with: bul up"):
        await ask(tmp_path / "none", "echo")
