"""nginx.conf for an nginx in front of several routers, or of replicas: a pure renderer.

Refuses what it cannot write safely: a URL that is none, a path with a quote or a line end.

The `least_conn` snippet that everybody copies loses requests whenever a replica restarts. What is
mended, with what went wrong without it:

    proxy_next_upstream ... http_503      a replica that drains says 503: ask the next one
    ... non_idempotent                    a POST is not tried again by default; ours may be, as
                                          long as no byte of an answer has come (nginx's own rule)
    fail_timeout=1s                       one that is back is used after 1 s, not after 10
    zone                                  one count of connections, not one per worker process
    keepalive, HTTP/1.1, Connection ""    no new connection per request
    proxy_buffering off                   a token is passed on when it comes
    client_body_buffer_size               prompts never lie in a file on nginx's disk
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Sequence

from bul.errors import ConfigError

__all__ = ["NginxFront", "render", "render_include"]

BODY_MAX = "4m"
"""What a replica takes, and no more."""
TRIES_MAX = 3
KEPT_CONNECTIONS = 64
KEPT_S = 30
"""Shorter than the 60 s of our router and the 75 s of our replicas, so that nginx closes first."""
SHUTDOWN_S = 330
"""For the answers of old workers after a reload: a request's deadline and a drain."""

LISTEN = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.*-]+)(?::\d{1,5})?")
UNSAFE = re.compile(r'[\x00-\x1f\x7f"\\$]')


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NginxFront:
    """upstreams: URLs of routers or replicas, none for "nobody is there". listen: HOST:PORT.

    folder: absolute path for the pid file, the error log and temporary files.
    silence_s: a replica may say nothing for this long. Raises ConfigError.
    """

    upstreams: Sequence[str]
    listen: str = "127.0.0.1:8080"
    folder: str = "/var/lib/bul-nginx"
    connect_s: float = 1.0
    silence_s: float = 300.0

    def __post_init__(self) -> None:
        if not LISTEN.fullmatch(self.listen):
            raise ConfigError(f"listen must look like 127.0.0.1:8080, was {self.listen!r}")
        if not self.folder.startswith("/") or UNSAFE.search(self.folder):
            raise ConfigError(f"folder must be an absolute, plain path, was {self.folder!r}")
        for url in self.upstreams:
            _address(url)


def render(front: NginxFront) -> str:
    """A whole nginx.conf: `nginx -c FILE`. Reload it with SIGHUP when it has changed."""
    folder = front.folder.rstrip("/")
    temporary = "\n".join(
        f'    {name}_temp_path "{folder}/temporary";'
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
# Made by `bul nginx`; changes are overwritten.
worker_processes auto;
worker_rlimit_nofile 65536;
worker_shutdown_timeout {SHUTDOWN_S}s;
pid "{folder}/nginx.pid";
error_log "{folder}/error.log" warn;
events {{ worker_connections 16384; }}

http {{
    access_log off;
    default_type application/json;
{temporary}

{_indent(render_include(front))}}}
"""


def render_include(front: NginxFront) -> str:
    """The `upstream` and `server` blocks alone, for an nginx that has its own configuration."""
    if not front.upstreams:
        return _server(front, _nobody("no replica is there"))
    servers = "\n".join(
        f"    server {_address(url)} max_fails=1 fail_timeout=1s;" for url in front.upstreams
    )
    proxied = f"""\
proxy_pass http://bul;
proxy_http_version 1.1;
proxy_set_header Connection "";
proxy_set_header Host $http_host;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;

# Ask the next one as long as no byte of an answer has come.
proxy_next_upstream error timeout invalid_header http_502 http_503 non_idempotent;
proxy_next_upstream_tries {TRIES_MAX};
proxy_connect_timeout {front.connect_s:g}s;
proxy_send_timeout 60s;
proxy_read_timeout {front.silence_s:g}s;

# A token is passed on when it comes, and a client that leaves ends its request.
proxy_buffering off;
proxy_ignore_client_abort off;"""
    upstream = f"""\
upstream bul {{
    zone bul 256k;
    least_conn;
{servers}
    keepalive {KEPT_CONNECTIONS};
    keepalive_timeout {KEPT_S}s;
    keepalive_requests 100000;
}}

"""
    return upstream + _server(front, proxied)


def _server(front: NginxFront, location: str) -> str:
    return f"""\
server {{
    listen {front.listen};
    client_max_body_size {BODY_MAX};
    client_body_buffer_size {BODY_MAX};
    keepalive_requests 100000;

    location / {{
{_indent(_indent(location))}    }}

    error_page 502 504 =503 @nobody;
    location @nobody {{
{_indent(_indent(_nobody("no replica answered")))}    }}
}}
"""


def _nobody(message: str) -> str:
    """A 503 in OpenAI's shape."""
    error = f'"message":"{message}","type":"server_error","param":null,"code":"no_replica"'
    answer = '\'{"error":{' + error + "}}'"
    return f"""\
default_type application/json;
add_header Retry-After 1 always;
return 503 {answer};"""


def _indent(text: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())


def _address(url: str) -> str:
    """HOST:PORT of a plain URL. Raises ConfigError."""
    if not url.isprintable():  # urlsplit would drop a line end without a word
        raise ConfigError(f"upstream {url!r} must look like http://127.0.0.1:8002")
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    plain = parts.scheme == "http" and parts.path in ("", "/") and not parts.query
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    if not plain or not port or not LISTEN.fullmatch(f"{host}:{port}") or parts.username:
        raise ConfigError(f"upstream {url!r} must look like http://127.0.0.1:8002")
    return f"{host}:{port}"
