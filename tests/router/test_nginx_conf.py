"""What is written into an nginx.conf, and what never is."""

from __future__ import annotations

import pytest

from bul.errors import ConfigError
from bul.router.nginx import NginxFront, render, render_include

TWO = ("http://127.0.0.1:8002", "http://bul-2:8002/")


def test_each_mended_setting_is_there() -> None:
    text = render(NginxFront(upstreams=TWO, folder="/srv/bul"))
    for wanted in (
        "least_conn;",
        "server 127.0.0.1:8002 max_fails=1 fail_timeout=1s;",
        "server bul-2:8002 max_fails=1 fail_timeout=1s;",
        "zone bul 256k;",
        "keepalive 64;",
        'proxy_set_header Connection "";',
        "proxy_http_version 1.1;",
        "proxy_next_upstream error timeout invalid_header http_502 http_503 non_idempotent;",
        "proxy_buffering off;",
        "client_body_buffer_size 4m;",
        'pid "/srv/bul/nginx.pid";',
    ):
        assert wanted in text


def test_the_include_is_the_http_level_part_alone() -> None:
    front = NginxFront(upstreams=TWO)
    assert "http {" not in render_include(front)
    assert "pid" not in render_include(front)
    assert render_include(front).startswith("upstream bul {")


def test_without_an_upstream_everybody_gets_a_503_in_the_usual_shape() -> None:
    text = render_include(NginxFront(upstreams=()))
    assert "upstream" not in text
    assert '"code":"no_replica"' in text


def test_an_ipv6_upstream_keeps_its_brackets() -> None:
    text = render_include(NginxFront(upstreams=["http://[::1]:8002"], listen="[::1]:8080"))
    assert "server [::1]:8002 max_fails" in text
    assert "listen [::1]:8080;" in text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8002",
        "https://127.0.0.1:8002",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:8002/v1",
        "http://127.0.0.1:8002?a",
        "http://user@127.0.0.1:8002",
        "http://a;b:8002",
        "http://a b:8002",
        "http://a\nb:8002",
        "http://$host:8002",
        "http://{:8002",
    ],
)
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="upstream"):
        NginxFront(upstreams=[url])


@pytest.mark.parametrize("listen", ["", "8080;", "a b:1", "127.0.0.1:80 ssl", "unix:/x", "{"])
def test_what_is_no_address_to_listen_on_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        NginxFront(upstreams=TWO, listen=listen)


@pytest.mark.parametrize("folder", ["", "relative", '/a"b', "/a\nb", "/a$b", "/a\\b"])
def test_a_folder_that_nginx_would_read_otherwise_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="folder"):
        NginxFront(upstreams=TWO, folder=folder)
