"""A real Ray cluster of several nodes on this machine, for the ray driver's tests.

Refuses to put Ray into the environment of everything else: it lies in a folder of its own, which
is looked at last (`tools/test-servers.sh nightly` puts it there).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import bul

__all__ = ["ray_cluster", "ray_python_path"]

RAY_FOLDER = Path(sys.prefix).resolve() / "opt" / "ray"


def ray_python_path() -> str:
    """PYTHONPATH for Ray's own processes, which must be set before a cluster is started."""
    source = Path(bul.__file__).parent.parent
    packages = (Path(sys.prefix) / "lib").glob("python*/site-packages")
    return ":".join(map(str, (source, *packages, RAY_FOLDER)))


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int) -> Iterator[str]:
    """The address of a cluster with so many nodes of so many CPUs each."""
    if str(RAY_FOLDER) not in sys.path:
        sys.path.append(str(RAY_FOLDER))
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - found only now

    head = {"num_cpus": cpus, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=cpus)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
