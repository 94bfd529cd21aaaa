"""The router's own pages: /health, /ready, /replicas and /metrics; all else goes to a replica.

Refuses labels that a client could choose: the only one is a replica's URL, from our own list.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable

import msgspec

from bul.router.http1 import Request, error_response, response
from bul.router.membership import PATH as MEMBERS

if typing.TYPE_CHECKING:
    from bul.router.app import Router
    from bul.router.events import Follower

__all__ = ["GUARDED", "PATHS", "Page", "metrics_text", "own_page", "render"]

GUARDED = frozenset((b"/replicas", b"/metrics"))
PATHS = GUARDED | {b"/health", b"/ready"}
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "arrivals": "Requests that came in for a replica.",
    "completed": "Answers passed on to their end.",
    "cancelled": "Requests whose client left first.",
    "retries": "Second tries on another replica.",
    "hedges": "Requests that a second replica got as well, because the first was silent.",
    "hedges_won": "Hedged requests that the second replica answered first.",
    "resumed": "Streams that another replica has taken up.",
    "refused": "Requests for which no replica was ready.",
    "queued": "Requests that waited for a replica to have room.",
    "shed": "Requests turned away because none had room in time.",
    "over_limit": "Requests of keys that had used what a minute gives them.",
    "broken": "Answers that broke off after their first byte.",
    "timeouts": "Answers for which nothing came in time.",
    "invalid": "Requests that could not be read.",
    "slow_clients": "Clients whose request came too slowly.",
    "turned_away": "Connections beyond the limit.",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One more page of whoever runs the router. guarded: for the operator's key. extra: header
    lines, each with its CRLF.
    """

    body: Callable[[], bytes]
    kind: bytes
    guarded: bool
    extra: bytes = b""

    def whole(self, *, close: bool) -> bytes:
        """The whole response."""
        return response(200, self.body(), kind=self.kind, extra=self.extra, close=close)


def own_page(router: Router, request: Request) -> bytes | None:
    """The whole response for a page of the router's own; None if it has no such page."""
    path = request.target.partition(b"?")[0]
    more = router.more_pages.get(path)
    if path == MEMBERS and router.config.members:
        if not router.may_see(request):
            return _no_key(request)
        return router.members.answer(request, router.now_s())
    if path not in PATHS and more is None:
        return None
    close = not request.keep_alive
    if request.method not in (b"GET", b"HEAD"):
        return error_response(405, "only GET is allowed here", "bad_method", close=close)
    if (path in GUARDED if more is None else more.guarded) and not router.may_see(request):
        return _no_key(request)
    page = render(router, path, close=close) if more is None else more.whole(close=close)
    return page[: page.index(b"\r\n\r\n") + 4] if request.method == b"HEAD" else page


def _no_key(request: Request) -> bytes:
    close = not request.keep_alive
    return error_response(401, "a valid API key is needed", "no_key", close=close)


def render(router: Router, path: bytes, *, close: bool) -> bytes:
    """The whole response for one of `PATHS`."""
    if path == b"/metrics":
        return response(200, metrics_text(router).encode(), kind=_TEXT, close=close)
    if path == b"/replicas":
        return response(200, msgspec.json.encode(_replicas(router)), close=close)
    ready = len(router.ready)
    if path == b"/ready":
        status = 200 if ready else 503
        word = "ready" if ready else "no replica is ready"
        return response(
            status, msgspec.json.encode({"status": word, "replicas": ready}), close=close
        )
    return response(200, b'{"status":"ok"}', close=close)


def _replicas(router: Router) -> dict[str, object]:
    return {
        "policy": router.config.policy,
        "replicas": [
            {
                "url": replica.url,
                "state": replica.state,
                "in_flight": replica.in_flight,
                "limit": int(replica.limit.now),
                "requests": replica.requests,
                "failures": replica.failures,
                **_told(router, replica.url),
            }
            for replica in router.replicas
        ],
    }


def metrics_text(router: Router) -> str:
    """Its metrics and those of whoever runs it, in Prometheus' text format."""
    lines = []
    for name, what in _COUNTERS.items():
        full = f"bul_router_{name}_total"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} counter"]
        lines.append(f"{full} {getattr(router, name)}")
    lines += ["# HELP bul_router_waiting Requests in line.", "# TYPE bul_router_waiting gauge"]
    lines.append(f"bul_router_waiting {len(router.waiting)}")
    lines += ["# HELP bul_router_clients Open connections.", "# TYPE bul_router_clients gauge"]
    lines.append(f"bul_router_clients {router.clients}")
    for name, kind, what in (
        ("ready", "gauge", "1 while the replica gets requests."),
        ("in_flight", "gauge", "Requests under way at the replica."),
        ("limit", "gauge", "How many may be, as found by now."),
        ("requests_total", "counter", "Requests sent to the replica."),
        ("failures_total", "counter", "Of them those that it failed."),
    ):
        full = f"bul_router_replica_{name}"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} {kind}"]
        for replica in router.replicas:
            value = _figure(name, replica)
            lines.append(f'{full}{{replica="{replica.url}"}} {value}')
    lines += _event_lines(router)
    return "\n".join(lines) + "\n" + router.more_metrics()


def _figure(name: str, replica: typing.Any) -> int:
    if name == "ready":
        return int(replica.state == "ready")
    if name == "limit":
        return int(replica.limit.now)
    value: int = getattr(replica, name.removesuffix("_total"))
    return value


def _told(router: Router, url: str) -> dict[str, object]:
    """What the replica itself says about what it holds."""
    follower = router.followers.get(url)
    if follower is None:
        return {"events": "off"}
    age_s = follower.age_s
    state = "fresh" if follower.fresh else "refused" if follower.refused else "stale"
    return {"events": state, "events_age_s": age_s, "hints": len(follower.held.hints)}


_EVENT_FIGURES = {
    "events_fresh": ("gauge", "1 while the replica's own word on its cache is believed."),
    "events_age_seconds": ("gauge", "Since the replica last said something of its cache."),
    "events_hints": ("gauge", "Prefixes that the replica says to hold in RAM."),
    "events_total": ("counter", "Prefixes that came or went, as told by the replica."),
    "events_gaps_total": ("counter", "Times that something told was missed."),
    "events_snapshots_total": ("counter", "Times that everything was told anew."),
    "events_left_out_total": ("counter", "Prefixes beyond what is remembered of one replica."),
}


def _event_lines(router: Router) -> list[str]:
    lines: list[str] = []
    for name, (kind, what) in _EVENT_FIGURES.items():
        full = f"bul_router_replica_{name}"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} {kind}"]
        for url, follower in router.followers.items():
            value = _event_figure(name, follower)
            if value is not None:
                lines.append(f'{full}{{replica="{url}"}} {value}')
    return lines


def _event_figure(name: str, follower: Follower) -> float | None:
    held = follower.held
    figures: dict[str, float | None] = {
        "events_fresh": int(follower.fresh),
        "events_age_seconds": follower.age_s,
        "events_hints": len(held.hints),
        "events_total": held.ops_total,
        "events_gaps_total": held.gaps,
        "events_snapshots_total": held.snapshots,
        "events_left_out_total": held.left_out,
    }
    return figures[name]
