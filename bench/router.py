"""CPU of the router process per request and per streamed chunk, beside nginx's.

    make bench-router                             about two minutes; bench/out/router.json
    .venv/bin/python bench/router.py --quick      a smoke run, seconds

All routers stand in front of the same two fake replicas, one after the other, and get the same
chat bodies of 8 kB over 32 kept connections. CPU is user + system of the router's process (of
nginx: its one worker), from /proc. The order of the routers changes from round to round, and the
least of the rounds counts: what else runs on the machine only ever adds.

`sglang-router` and `vllm-router` (the extra `bench`) are installed the first time, into an
environment of their own, `.venv/opt/router-peers`; a peer that cannot run is a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

CONNECTIONS = 32
CHUNKS = 100
HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv" / "opt" / "router-peers"
INSTALL_S = 600
NGINX_PLACES = (".venv/opt/bin/nginx", "nginx", "/usr/sbin/nginx")
NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  client_body_buffer_size 64k;
  upstream replicas {{ least_conn; {servers} keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_next_upstream error timeout;
    }}
  }}
}}
"""

Start = Callable[[int, list[int], Path], list[str]]


def bul(policy: str) -> Start:
    def command(port: int, upstreams: list[int], _folder: Path) -> list[str]:
        replicas = [f"--replica=http://127.0.0.1:{upstream}" for upstream in upstreams]
        own = Path(sys.executable).with_name("bul")
        return [str(own), "route", *replicas, "--port", str(port), "--policy", policy]

    return command


def nginx(port: int, upstreams: list[int], folder: Path) -> list[str]:
    binary = next(filter(None, (shutil.which(place) for place in NGINX_PLACES)))
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in upstreams)
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, port=port, servers=servers))
    return [binary, "-p", str(folder), "-c", str(conf)]


def peer(module: str) -> Start:
    def command(port: int, upstreams: list[int], _folder: Path) -> list[str]:
        urls = [f"http://127.0.0.1:{upstream}" for upstream in upstreams]
        flags = ["--host", "127.0.0.1", "--port", str(port), "--policy", "cache_aware"]
        own = str(PEERS / "bin" / "python")
        return [own, "-m", f"{module}.launch_router", "--worker-urls", *urls, *flags]

    return command


ROUTERS: dict[str, Start] = {
    "nginx": nginx,
    "bul": bul("prefix"),
    "bul-least-conn": bul("least_conn"),
    "sglang-router": peer("sglang_router"),
    "vllm-router": peer("vllm_router"),
}


def install_peers(names: list[str]) -> str:
    """Make their environment, if it is not there; what went wrong, or ""."""
    document = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    extra = document["project"]["optional-dependencies"]["bench"]
    wanted = [line for line in extra if any(line.startswith(name) for name in names)]
    done = PEERS / "installed"
    if not wanted or (done.exists() and done.read_text() == repr(wanted)):
        return ""
    print(f"[peers] installing {', '.join(wanted)}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True, timeout=INSTALL_S)
        pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(pip, check=True, timeout=INSTALL_S, capture_output=True)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return f"not installed: {lines[-1] if lines else error}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not installed: {error}"
    done.write_text(repr(wanted))
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """User + system seconds of a process and of all below it."""
    total = 0.0
    for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(stat.read_text().split()[0]) / 1e9
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(cpu_s(int(child)) for child in children.read_text().split())
    return total


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(process, port)
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Until a request is answered with 200."""
    for _ in range(200):
        if process.poll() is not None:
            assert process.stderr is not None
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{port}/v1/models"
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.05)
    raise RuntimeError("did not become ready within 10 s")


def load(port: int, requests: int, kind: str) -> float:
    """Seconds that it took."""
    script = [sys.executable, str(HERE / "_router_load.py"), "load"]
    arguments = [str(port), str(requests), str(CONNECTIONS), kind]
    done = subprocess.run([*script, *arguments], check=True, capture_output=True, timeout=300)
    return float(done.stdout)


def measure(start: Start, upstreams: list[int], requests: int) -> dict[str, float]:
    port = free_port()
    streams = max(requests // 50, CONNECTIONS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process = stack.enter_context(running(start(port, upstreams, folder), port))
        load(port, max(requests // 10, CONNECTIONS), "whole")
        before = cpu_s(process.pid)
        wall_s = load(port, requests, "whole")
        whole_us = (cpu_s(process.pid) - before) / requests * 1e6
        before = cpu_s(process.pid)
        load(port, streams, "stream")
        stream_us = (cpu_s(process.pid) - before) / streams * 1e6
    return {
        "cpu_us_per_request": whole_us,
        "cpu_us_per_chunk": max(stream_us - whole_us, 0.0) / CHUNKS,
        "requests_per_second": requests / wall_s,
    }


def row(name: str, runs: list[dict[str, float]], problem: str) -> dict[str, object]:
    if not runs:
        return {"name": name, "error": problem}
    best = {key: round(min(run[key] for run in runs), 1) for key in runs[0]}
    best["requests_per_second"] = round(max(run["requests_per_second"] for run in runs))
    return {"name": name, **best}


def show(rows: list[dict[str, object]]) -> None:
    base = next((found for found in rows if found["name"] == "nginx" and "error" not in found), {})
    print(
        f"{'router':16}{'us/request':>12}{'x nginx':>9}{'us/chunk':>10}{'x nginx':>9}{'req/s':>9}"
    )
    for found in rows:
        if "error" in found:
            print(f"{found['name']:16}could not run: {found['error']}")
            continue
        ratios = []
        for key in ("cpu_us_per_request", "cpu_us_per_chunk"):
            mine, theirs = float(str(found[key])), float(str(base.get(key, 0)))
            ratios.append(f"{mine / theirs:.2f}" if theirs else "-")
        print(
            f"{found['name']:16}{found['cpu_us_per_request']:>12}{ratios[0]:>9}"
            f"{found['cpu_us_per_chunk']:>10}{ratios[1]:>9}{found['requests_per_second']:>9}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", help="a router's name; may be repeated")
    options = parser.parse_args()
    requests, rounds = (1000, 1) if options.quick else (10_000, 3)
    names = [name for name in ROUTERS if not options.only or name in options.only]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    peers = [name for name in names if name.endswith("-router")]
    problem = install_peers(peers)
    problems = {name: problem if name in peers else "" for name in names}
    names = [name for name in names if not problems[name]]
    upstreams = [free_port(), free_port()]
    script = [sys.executable, str(HERE / "_router_load.py"), "upstream"]
    with contextlib.ExitStack() as stack:
        for port in upstreams:
            stack.enter_context(running([*script, str(port)], port))
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                print(f"[round {number + 1} of {rounds}] {name}", file=sys.stderr)
                try:
                    runs[name].append(measure(ROUTERS[name], upstreams, requests))
                except (RuntimeError, OSError, StopIteration, subprocess.SubprocessError) as error:
                    problems[name] = str(error) or "not installed"
    rows = [row(name, runs[name], problems[name]) for name in problems]
    show(rows)
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "requests": requests, "rounds": rounds}
    document = {"machine": machine, "rows": rows}
    (out / "router.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
