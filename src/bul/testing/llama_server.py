"""llama.cpp's own HTTP server: `python -m bul.testing.llama_server FOLDER MODEL PORT`.

FOLDER holds the unpacked wheel of xllamacpp (tools/test-servers.sh nightly). Refuses to be a
replica of ours: no /ready, no block events; says one line when it listens, ends with SIGTERM.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from typing import Any

__all__: list[str] = []

CONTEXT_TOKENS = 8192
SEQUENCES = 2


def _main(folder: str, model: str, port: int) -> None:
    sys.path.insert(0, folder)
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = port
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = SEQUENCES
    params.warmup = False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    line = json.dumps({"event": "ready", "url": server.listening_address})
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
