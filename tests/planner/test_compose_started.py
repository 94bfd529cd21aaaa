"""The rendered Compose file, started: real containers from an image of the rendered Containerfile.

Nothing can be pulled: the base is a Debian that mmdebstrap makes, and the images of Valkey, nginx
and Prometheus are that base with the real servers in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import docker
import httpx
import pytest
import yaml

from bul.cli.main import main
from bul.config import environment
from bul.testing.nginx import free_port
from bul.testing.podman import podman_engine
from bul.testing.waiting import eventually

ROOT = Path(__file__).parents[2]
OPT = Path(sys.prefix) / "opt"
BASE_TAR = OPT / "debian.tar"
PACKAGES = "python3,python3-venv,nginx-light"
SERVERS = {
    "valkey": "COPY valkey-server /usr/bin/valkey-server\n",
    "nginx": 'CMD ["nginx", "-g", "daemon off;"]\n',
    "prometheus": "COPY prometheus /bin/prometheus\n"
    'ENTRYPOINT ["/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yml", '
    '"--storage.tsdb.path=/prometheus"]\n',
}
BINARIES = {"valkey": "valkey-server", "prometheus": "prometheus"}


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    outcome = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment(), **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    return outcome.stdout


def debian() -> Path:
    """Made once for an environment: it takes two minutes."""
    if not BASE_TAR.exists():
        if shutil.which("mmdebstrap") is None:
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "mmdebstrap"]
            run(*install, cwd=ROOT)
        made = BASE_TAR.with_suffix(".new")
        make = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm"]
        run(*make, "--format=tar", made, cwd=ROOT)
        made.rename(BASE_TAR)
    return BASE_TAR


def wheels(folder: Path) -> None:
    """As the rendered README says, for the Python of that Debian."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    pins = [
        line.partition(";")[0].strip()
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and "python_version >=" not in line
    ]
    run(*pip, "download", "--only-binary=:all:", "--no-deps", "-d", folder, *pins, cwd=ROOT)
    source = folder.parent / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=ROOT)
    shutil.rmtree(source)


def deployment(folder: Path) -> tuple[int, int]:
    """The rendered files in `folder`, changed where this machine must differ: ports of nginx and
    Prometheus, and the engine, since no model can be fetched into a container here.
    """
    asked = ["plan", "--rps", "3", "--phase", "3", "--scenario", "traffic-spikes"]
    assert main([*asked, "--out", str(folder)]) == 0
    path = folder / "docker-compose.yml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    ports = free_port(), free_port()
    document["services"]["nginx"]["ports"] = [f"127.0.0.1:{ports[0]}:8080"]
    document["services"]["prometheus"]["ports"] = [f"127.0.0.1:{ports[1]}:9090"]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    toml = folder / "bul.toml"
    text = toml.read_text(encoding="utf-8")
    toml.write_text(text.replace("[serve]\n", '[serve]\nengine = "timed"\n'), encoding="utf-8")
    return ports


def images(client: docker.DockerClient, folder: Path) -> dict[str, str]:
    """The base, and the servers on it; variables for Compose."""
    client.api.import_image_from_file(str(debian()), repository="bul-base", tag="latest")
    named = {}
    for name, lines in SERVERS.items():
        context = folder / f"image-{name}"
        context.mkdir()
        if name in BINARIES:
            shutil.copy(OPT / "bin" / BINARIES[name], context)
        (context / "Dockerfile").write_text(f"FROM bul-base:latest\n{lines}", encoding="utf-8")
        client.images.build(path=str(context), tag=f"bul-{name}:latest")
        named[f"{name.upper()}_IMAGE"] = f"bul-{name}:latest"
    return named


@pytest.mark.nightly
async def test_a_rendered_deployment_starts_answers_and_survives_a_router(tmp_path: Path) -> None:
    folder = tmp_path / "deploy"
    port, prometheus_port = deployment(folder)
    wheels(folder / "wheels")
    with podman_engine() as url:
        client = docker.DockerClient(base_url=url, timeout=600)
        environ = images(client, tmp_path) | {
            "DOCKER_HOST": url,
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_PROJECT_NAME": f"bul{os.getpid()}",
        }
        compose = ["docker-compose", "--compatibility"]
        build = ["build", "--build-arg", "BASE=bul-base:latest", "bul"]
        run(*compose, *build, cwd=folder, environ=environ)
        try:
            run(*compose, "up", "-d", "--no-build", cwd=folder, environ=environ)
            await answers(f"http://127.0.0.1:{port}", folder)
            await all_are_scraped(f"http://127.0.0.1:{prometheus_port}")
            run(*compose, "kill", "router1", cwd=folder, environ=environ)
            await answers(f"http://127.0.0.1:{port}", folder)
        finally:
            run(*compose, "down", "-t", "5", "-v", cwd=folder, environ=environ)
            client.close()


async def answers(url: str, folder: Path) -> None:
    """To those with a key, from the cache the second time, without a failure."""
    key = (folder / "client.key").read_text(encoding="utf-8").strip()
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:

        async def ready() -> bool:
            try:
                return (await client.get("/v1/models")).status_code == httpx.codes.OK
            except httpx.HTTPError:
                return False

        await eventually("the deployment answers", ready, 90)
        assert (await client.get("/v1/models", headers={"authorization": ""})).status_code == 401
        body = {"model": "bul-timed", "prompt": "word " * 400, "max_tokens": 4, "temperature": 0}
        found = [await client.post("/v1/completions", json=body) for _ in range(20)]
    assert [one.status_code for one in found] == [200] * 20
    details = found[-1].json()["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > 0
    assert len({one.json()["choices"][0]["text"] for one in found}) == 1


async def all_are_scraped(url: str) -> None:
    """Three replicas and two routers, by DNS and with the operator's key."""
    async with httpx.AsyncClient(base_url=url) as client:

        async def up() -> bool:
            try:
                answer = await client.get("/api/v1/query", params={"query": "sum(up)"})
                found = answer.json()["data"]["result"]
            except (httpx.HTTPError, ValueError):
                return False
            return bool(found) and float(found[0]["value"][1]) == 5

        await eventually("Prometheus has all five", up, 90)
