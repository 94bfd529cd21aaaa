"""A real nginx in front: replicas come, go and restart under load; the guide's snippet loses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bul.router.nginx import NginxFront, render
from bul.testing.nginx import check_conf, free_port, guide_conf, running_nginx
from bul.testing.region_process import bul_process, region_process
from bul.testing.replica_set import ReplicaSet
from bul.testing.request_load import RequestLoad
from bul.testing.waiting import eventually

pytestmark = pytest.mark.slow

FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "100"}


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[ReplicaSet]:
    async with contextlib.AsyncExitStack() as stack:
        found = ReplicaSet(tmp_path, stack, FAST)
        await found.start("a", "b", "c")
        yield found


def mended(upstreams: list[str], port: int, folder: Path) -> str:
    front = NginxFront(upstreams=upstreams, listen=f"127.0.0.1:{port}", folder=str(folder))
    return render(front)


def load_of(url: str) -> RequestLoad:
    """A connection per request: this nginx closes kept ones when it reloads."""
    return RequestLoad(url, clients=6, max_tokens=8, stream_every=2, keep=False)


async def restart_all(replicas: ReplicaSet, conf: str, port: int, folder: Path) -> RequestLoad:
    """Every replica restarted in place behind this configuration, under load."""
    file = folder / "nginx.conf"
    file.write_text(conf)
    async with running_nginx(file, port) as nginx, load_of(nginx.url) as load:
        await load.more(30)
        for name in ("a", "b", "c"):
            await replicas.restart_in_place(name)
            await load.more(30)
    return load


async def test_a_rolling_restart_behind_it_loses_nothing(
    replicas: ReplicaSet, tmp_path: Path
) -> None:
    port = free_port()
    load = await restart_all(replicas, mended(replicas.urls, port, tmp_path), port, tmp_path)
    assert load.lost == []
    assert load.streams > 50


async def test_the_control_the_guides_snippet_loses_requests(
    replicas: ReplicaSet, tmp_path: Path
) -> None:
    port = free_port()
    load = await restart_all(replicas, guide_conf(replicas.urls, port, tmp_path), port, tmp_path)
    assert load.lost


async def test_a_replica_is_added_and_one_removed_under_load(
    replicas: ReplicaSet, tmp_path: Path
) -> None:
    port, file = free_port(), tmp_path / "nginx.conf"
    file.write_text(mended(replicas.urls, port, tmp_path))
    async with running_nginx(file, port) as nginx, load_of(nginx.url) as load:
        await load.more(30)
        await replicas.start("d")
        await nginx.reload(mended(replicas.urls, port, tmp_path))
        await load.more(60)
        replicas.forget("a")
        await nginx.reload(mended(replicas.urls, port, tmp_path))
        await replicas.remove("a")
        await load.more(60)
    assert load.lost == []


async def test_it_follows_a_regions_replicas_through_a_rolling_restart(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "nginx.conf"
    follow = ["nginx", "--conf", str(file), "--follow", "--listen", f"127.0.0.1:{port}"]
    async with contextlib.AsyncExitStack() as stack:
        region = await stack.enter_async_context(region_process(tmp_path, environ=FAST))
        await region.wait_for("ready")
        follower = await stack.enter_async_context(bul_process(follow, tmp_path))
        await eventually("the file is there", file.exists)
        nginx = await stack.enter_async_context(running_nginx(file, port))
        load = await stack.enter_async_context(load_of(nginx.url))
        await load.more(30)
        before = file.read_text()
        restart = await stack.enter_async_context(bul_process(["restart"], tmp_path))
        assert await restart.ended() == 0
        urls = [found["url"] for found in region.said("replica_ready")[-2:]]
        ports = [url.rpartition(":")[2] for url in urls]
        await eventually("it names the new", lambda: all(p in file.read_text() for p in ports))
        await load.more(30)
        assert file.read_text() != before
        assert "reloaded nginx" in follower.errors
    assert load.lost == []


@pytest.mark.parametrize("upstreams", [[], ["http://127.0.0.1:8002"], ["http://[::1]:8002"]])
async def test_nginx_itself_finds_no_fault_in_the_file(
    upstreams: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    (folder / "nginx.conf").write_text(mended(upstreams, free_port(), folder))
    assert await check_conf(folder / "nginx.conf") == ""


async def test_the_control_a_broken_file_is_found(tmp_path: Path) -> None:
    text = mended(["http://127.0.0.1:8002"], free_port(), tmp_path)
    (tmp_path / "nginx.conf").write_text(text.replace("least_conn;", "most_conn;"))
    assert "most_conn" in await check_conf(tmp_path / "nginx.conf")


async def test_when_nobody_answers_the_error_has_the_usual_shape(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "nginx.conf"
    for upstreams in ([], [f"http://127.0.0.1:{free_port()}"]):
        file.write_text(mended(upstreams, port, tmp_path))
        async with running_nginx(file, port) as nginx:
            async with RequestLoad(nginx.url, clients=1) as load:
                await load.more(1)
            assert "status 503" in load.lost[0]
            assert '"code":"no_replica"' in load.lost[0]
