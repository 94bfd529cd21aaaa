"""`bul nginx`: the configuration of an nginx in front, and its reload when replicas change."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
import typing
from pathlib import Path

import click

from bul.cli.options import load as load_settings
from bul.cli.options import setting
from bul.errors import ConfigError, DriverError

if typing.TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command"]

FOLLOW_S = 0.25


@click.command(name="nginx")
@click.option("--upstream", "upstreams", multiple=True, help="A router's or replica's URL.")
@setting("up.state_dir", "--state-dir", help="Of the running region whose replicas are meant.")
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="HOST:PORT of nginx.")
@click.option("--conf", type=click.Path(dir_okay=False, path_type=Path), help="Write this file.")
@click.option("--include", is_flag=True, help="The upstream and server blocks alone.")
@click.option("--follow", is_flag=True, help="Rewrite and reload whenever replicas change.")
def command(
    upstreams: tuple[str, ...],
    listen: str,
    conf: Path | None,
    include: bool,
    follow: bool,
    **values: object,
) -> None:
    """A configuration for an nginx in front of several routers, or of a region's replicas.

    Without --upstream, the replicas of the region that runs in --state-dir. Without --conf, to
    stdout. An nginx that was started with the file is reloaded when the file has changed.

    Example: bul nginx --upstream http://10.0.0.1:8000 --upstream http://10.0.0.2:8000

    Example: bul nginx --conf /srv/bul/nginx.conf --follow
    """
    from bul.router.nginx import NginxFront, render, render_include

    settings = load_settings(values)
    if follow and (conf is None or upstreams):
        raise click.UsageError("--follow needs --conf, and a region instead of --upstream")

    def text(urls: Sequence[str]) -> str:
        front = NginxFront(upstreams=urls, listen=listen)
        if conf is not None:
            front = dataclasses.replace(front, folder=str(conf.resolve().parent))
        return render_include(front) if include else render(front)

    if conf is None:
        click.echo(text(upstreams or _replicas(settings.up.state_dir)), nl=False)
        return
    _write(conf, text(upstreams or _replicas(settings.up.state_dir)))
    while follow:
        time.sleep(FOLLOW_S)
        # A region that is gone may come back: until then the file stays as it is.
        with contextlib.suppress(DriverError):
            _write(conf, text(_replicas(settings.up.state_dir)))


def _replicas(state_dir: str) -> tuple[str, ...]:
    """URLs of the replicas that take requests. Raises DriverError if no region runs there."""
    from bul.cli.control import ask_region

    def progress(text: str, **_: object) -> None:
        click.echo(text, err=True)

    status = ask_region(state_dir, "status", progress)
    return tuple(sorted(found["url"] for found in status["replicas"] if found["routed"]))


def _write(conf: Path, text: str) -> None:
    """Write the file if that changes it, whole or not at all, and reload the nginx that uses it."""
    try:
        if conf.exists() and conf.read_text(encoding="utf-8") == text:
            return
        new = conf.with_name(f".{conf.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(conf)
        pid = _nginx_pid(conf.parent / "nginx.pid")
    except OSError as error:
        raise ConfigError(f"cannot write {conf}: {error.strerror}") from error
    if pid:
        os.kill(pid, signal.SIGHUP)
    click.echo(f"wrote {conf}" + (f", reloaded nginx (process {pid})" if pid else ""), err=True)


def _nginx_pid(file: Path) -> int:
    """0 unless an nginx runs with that pid file: a stale one may name somebody else."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int(file.read_text(encoding="ascii"))
        if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == "nginx":
            return pid
    return 0
