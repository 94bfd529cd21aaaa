"""Several hosts on one machine: network namespaces on a bridge of their own, with their cables.

Refuses to leave anything behind: names and addresses are new for each run, and everything goes with
the `with` block. Needs root and `ip` (tools/test-servers.sh).

    with net_hosts("a", "b") as hosts:
        ...  # bul_process(..., prefix=hosts["a"].prefix), reachable at hosts["a"].address
        hosts["a"].unplug()
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Bridge", "Host", "net_hosts"]

SUBNETS = 250


def _binary() -> str:
    found = shutil.which(Path(sys.prefix) / "opt" / "bin" / "ip") or shutil.which("ip")
    assert found, "no ip: make servers"
    return found


def _ip(*arguments: str, check: bool = True) -> str:
    command = [_binary(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Host:
    """One namespace. prefix: of a command that is to run there."""

    def __init__(self, name: str, cable: str, address: str) -> None:
        self.name = name
        self.address = address
        self.prefix = (_binary(), "netns", "exec", name)
        self._cable = cable

    def unplug(self) -> None:
        """Nothing comes or goes any more, and nobody is told."""
        _ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        _ip("link", "set", self._cable, "up")


class Bridge:
    """The switch between them, at `address` on the test's side."""

    def __init__(self, address: str, hosts: dict[str, Host]) -> None:
        self.address = address
        self.hosts = hosts

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]


@contextlib.contextmanager
def net_hosts(*names: str) -> Iterator[Bridge]:
    """These hosts, up and connected, until the block ends."""
    run = secrets.token_hex(3)
    subnet = _free_subnet()
    bridge = f"bulbr{run}"
    with contextlib.ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge, check=False)
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = {}
        for number, name in enumerate(names, start=2):
            space, cable = f"bul{run}-{name}", f"bulv{run}{number}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space, check=False)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            stack.callback(_ip, "link", "del", cable, check=False)
            _ip("link", "set", cable, "master", bridge, "up")
            inside = ("-n", space)
            _ip(*inside, "addr", "add", f"{subnet}.{number}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            hosts[name] = Host(space, cable, f"{subnet}.{number}")
        yield Bridge(f"{subnet}.1", hosts)


def _free_subnet() -> str:
    """Of 10.213.0.0/16, one that this machine does not use."""
    used = _ip("-4", "-o", "addr")
    while True:
        subnet = f"10.213.{secrets.randbelow(SUBNETS) + 1}"
        if f" {subnet}." not in used:
            return subnet
