"""The smallest thing that a process driver can start: `python -m bul.testing.stub_replica`.

Answers every GET with its name; refuses to be a service. `--die-after S` and `--never-ready`
make the faults that drivers must handle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys

__all__: list[str] = []


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    await writer.drain()
    writer.close()


async def _serve(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    if not arguments.ignore_sigterm:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = await asyncio.start_server(_answer, arguments.host, arguments.port)
    port = server.sockets[0].getsockname()[1]
    if not arguments.never_ready:
        document = {"event": "ready", "url": f"http://{arguments.host}:{port}"}
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
    try:
        await asyncio.wait_for(stop.wait(), arguments.die_after)
    except TimeoutError:
        sys.stdout.write("out of memory, or so\n")
        return int(arguments.exit_code)
    return 0


def _main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--die-after", type=float, default=None)
    parser.add_argument("--exit-code", type=int, default=3)
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    return asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(_main())
