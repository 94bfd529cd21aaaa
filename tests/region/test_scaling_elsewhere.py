"""The same ramp with replicas in real containers, and on three nodes of a real Ray cluster.

Nightly: two minutes each. Replicas are not on loopback here, so they have keys.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

import bul
from bul.testing.container_image import IMAGE_ENVIRON, IMAGE_PYTHON, SOURCE_IN_IMAGE
from bul.testing.podman import IMAGE, podman_engine
from bul.testing.ray_cluster import ray_cluster, ray_python_path
from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.waiting import eventually

pytestmark = pytest.mark.nightly
KEY = "the-operators-key"
SOURCE = Path(bul.__file__).parent.parent
SETTINGS = f"""
[keys]
operator = "{hashlib.sha256(KEY.encode()).hexdigest()}"
[timed]
decode_tokens_per_s = 25
[serve]
slots = 2
[scale]
interval_s = 2
hold_s = 5
work_memory_s = 4
violation_max = 0.2
"""
RAY_SILENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def as_toml(values: list[str]) -> str:
    return msgspec.json.encode(values).decode()


async def bench(
    folder: Path, url: str, rate: float, duration_s: float, environ: Mapping[str, str]
) -> dict[str, Any]:
    load = ["--rate", str(rate), "--duration", str(duration_s)]
    command = ["bench", url, *load, "--prompt-tokens", "64", "--output-tokens", "25", "--json"]
    async with bul_process(command, folder, {**environ, "BUL_BENCH_API_KEY": KEY}) as process:
        await process.ended(240)
        (run,) = process.events[0]["runs"]
        found: dict[str, Any] = run
        return found


async def ramp(folder: Path, driver: str, section: str, environ: Mapping[str, str]) -> None:
    """Up under load and down again, without a lost request."""
    (folder / "key").write_text(KEY)
    settings = SETTINGS + f'key_file = "{folder}/key"\n' + section
    (folder / "bul.toml").write_text(settings)
    flags = ("--driver", driver, "--replicas", "1", "--max-replicas", "4")
    async with region_process(folder, *flags, environ=environ) as region:
        url = str((await region.wait_for("ready", 120))["url"])
        runs = [await bench(folder, url, rate, 20, environ) for rate in (1, 5, 5)]
        await eventually("it came down", lambda: steps_of(region)[-1][1] <= 2, 90)
        runs.append(await bench(folder, url, 1, 10, environ))
        region.send(signal.SIGINT)
        assert await region.ended(120) == 0
    assert [run["errors"] for run in runs] == [{}] * 4
    steps = steps_of(region)
    assert max(after for _, after in steps) >= 3
    assert all(one["reason"] for one in region.said("scaling"))


def steps_of(region: BulProcess) -> list[tuple[int, int]]:
    acted = [one for one in region.said("scaling") if one["acted"]]
    return [(one["replicas_before"], one["replicas"]) for one in acted] or [(1, 9)]


async def test_containers_scale_up_and_down_without_a_lost_request(tmp_path: Path) -> None:
    inside = {**IMAGE_ENVIRON, "BUL_CONFIG": "/state/bul.toml"}
    with podman_engine() as engine:
        volumes = [f"{SOURCE}:{SOURCE_IN_IMAGE}:ro", f"{tmp_path}/bul.toml:/state/bul.toml:ro"]
        section = f"""
[compose]
engine = "{engine}"
image = "{IMAGE}"
project = "bultest"
command = {as_toml([IMAGE_PYTHON, "-m", "bul", "serve"])}
volumes = {as_toml(volumes)}
environ = {as_toml([f"{name}={value}" for name, value in inside.items()])}
"""
        await ramp(tmp_path, "compose", section, {"BUL_SERVE_PORT": "8002"})


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_three_ray_nodes_scale_up_and_down_without_a_lost_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = RAY_SILENT | {"PYTHONPATH": ray_python_path()}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with ray_cluster(nodes=3, cpus=2) as address:
        section = f"""
[ray]
address = "{address}"
environ = ["BUL_CONFIG={tmp_path}/bul.toml"]
"""
        await ramp(tmp_path, "ray", section, environ)
