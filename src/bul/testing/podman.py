"""A podman of the tests' own: its socket speaks Docker's API, its store is apart from any other.

Refuses to touch the machine's containers: store, state and configuration lie in one folder, used
by one process at a time. Settings as this kernel needs them: runc, cgroupfs, modest limits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bul.testing.container_image import image_tar
from bul.testing.region_process import clean_environment

__all__ = ["IMAGE", "PODMAN_FOLDER", "podman_engine"]

IMAGE = "bul-test"
PODMAN_FOLDER = Path(sys.prefix).resolve() / "opt" / "podman"
"""Kept, so that the image is made once for an environment."""
START_S = 20.0
IMPORT_S = 120
CONFIG = """
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
log_driver="k8s-file"
[network]
network_backend="netavark"
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""


@contextlib.contextmanager
def podman_engine(folder: Path = PODMAN_FOLDER) -> Iterator[str]:
    """The URL of its socket, the image `IMAGE` in its store; no container is left at the end."""
    podman = shutil.which("podman")
    assert podman, "podman is missing: make servers"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "containers.conf"
    config.write_text(CONFIG)
    environ = clean_environment({"CONTAINERS_CONF": str(config)})
    command = [podman, "--root", str(folder / "store"), "--runroot", str(folder / "run")]
    with (
        (folder / "lock").open("w") as lock,
        tempfile.TemporaryDirectory(prefix="bul-podman-") as short,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        socket = Path(short) / "podman.sock"
        serve = [*command, "system", "service", "--time", "0", f"unix://{socket}"]
        with subprocess.Popen(serve, env=environ, stderr=subprocess.PIPE) as service:  # noqa: S603 - podman, found above
            try:
                _until_there(socket, service)
                _ensure_image(f"unix://{socket}", folder / "image")
                yield f"unix://{socket}"
            finally:
                remove = [*command, "rm", "--all", "--force", "--time", "0"]
                subprocess.run(remove, env=environ, check=False, capture_output=True)  # noqa: S603 - podman again
                service.terminate()


def _until_there(socket: Path, service: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_S
    while not socket.exists():
        assert time.monotonic() < end_s, "podman's socket does not come"
        if service.poll() is not None:
            assert service.stderr is not None
            raise AssertionError(f"podman ended: {service.stderr.read()[-1000:]!r}")
        time.sleep(0.05)


def _ensure_image(url: str, stamp: Path) -> None:
    """Imported once for each state of the environment that it is made of."""
    import docker  # noqa: PLC0415 - an extra

    site = Path(docker.__file__).parent.parent
    listed = "\n".join(sorted(found.name for found in site.glob("*.dist-info")))
    wanted = hashlib.sha256(f"{sys.version} {listed}".encode()).hexdigest()
    client = docker.DockerClient(base_url=url, timeout=IMPORT_S)
    try:
        known = any(IMAGE in tag for image in client.images.list() for tag in image.tags)
        if not known or not stamp.exists() or stamp.read_text() != wanted:
            client.api.import_image_from_data(image_tar(), repository=IMAGE)
            stamp.write_text(wanted)
    finally:
        client.close()
