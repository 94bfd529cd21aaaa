"""The replica as a raw ASGI application: routes, keys, errors, counting. Life of one request:

    raw path -> open route? else key -> tenant -> route -> body -> `openai.py` -> tokens
      -> `generation.py` -> answer; whatever is raised on the way becomes an error in OpenAI's shape

Refuses everything that is not in its table: without a valid key even an unknown path is a 401.
A framework costs more than all of this: 97-193 us a request where raw ASGI takes 58 (DESIGN).
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from bul.accounts.usage import Spent
from bul.blocks.block_events import PATH as EVENTS_PATH
from bul.clock import Clock, SystemClock
from bul.config import ServeConfig
from bul.errors import EngineClosed, InvalidRequest
from bul.inference.contract import Runner
from bul.metrics import exposition
from bul.metrics.exposition import CacheFigures, ServiceMetrics
from bul.metrics.process import CpuMeter, memory_utilization
from bul.metrics.snapshot import Finished, Gauges, Window, scaling_metrics
from bul.service import replies
from bul.service.asgi import ASGIReceive, ASGISend, ClientGone, Exchange, Message
from bul.service.auth import Gate, tenant_salt
from bul.service.cache_events import BlockEvents
from bul.service.cache_pages import CacheView, Explainer, explain_job, stats_body
from bul.service.failures import failure_headers, log_failure
from bul.service.generation import Generation, requests_of
from bul.service.health import Health
from bul.service.openai import BODY_BYTES_MAX, Job, parse_chat, parse_completion
from bul.service.prompts import prompt_tokens, text_chars
from bul.service.replies import Reply
from bul.service.resuming import Wanted, check_job, read_body
from bul.service.traced import tell_generation, tell_job, traced
from bul.service.wishes import priority, wants_cache
from bul.tracing import Tracer, id_of

__all__ = ["ReplicaApp"]

INLINE_TEXT_MAX = 2048
"""Characters that are tokenised on the event loop; more go to a thread."""
TOKENIZER_THREADS = 2
MODEL_PREFIX = b"/v1/models/"
Handler = Callable[[Exchange, str, str], Awaitable[None]]


class ReplicaApp:
    """Call it with (scope, receive, send). One event loop; not thread-safe.

    keys: name -> SHA-256 of the key, empty for none. resume_secret: the region's, without which
    streams are taken up at an open gate only. cache: None until there is one. identities: the
    fields of those that the slower tiers hold blocks of. events: what the cache's watcher tells.
    bill: gets (tenant, model, what it used) of every generation request. gauges: more of them.
    `connections` tells how many are open; the server sets it.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        keys: Mapping[str, str] | None = None,
        resume_secret: str = "",
        cache: Callable[[], CacheView | None] = lambda: None,
        identities: Callable[[], Sequence[Mapping[str, object]]] = list,
        events: BlockEvents | None = None,
        bill: Callable[[str, str, Spent], None] = lambda _tenant, _model, _spent: None,
        gauges: Callable[[], Mapping[str, float]] = dict,
        tracer: Tracer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._gate = Gate({} if keys is None else keys)
        self._resume_secret = resume_secret if resume_secret or self._gate.open else None
        self._clock = clock or SystemClock()
        self._health = Health(stuck_after_s=config.stuck_after_s, clock=self._clock)
        self._cache = cache
        self._identities = identities
        self._events = events or BlockEvents()
        self._bill = bill
        self._more_gauges = gauges
        self._tracer = tracer
        self._metrics = ServiceMetrics(gauges=self._gauges, cache=self._cache_figures)
        self._window = Window(started_s=self._clock.now_s())
        self._cpu = CpuMeter()
        self._tokenizers = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="bul-tokenize")
        self._created_s = int(self._clock.wall_s())
        self.connections: Callable[[], int | None] = lambda: None
        self._routes: dict[bytes, tuple[str, Handler]] = {
            b"/health": ("GET", self._get_health),
            b"/ready": ("GET", self._get_ready),
            b"/metrics": ("GET", self._get_metrics),
            b"/signals": ("GET", self._get_signals),
            b"/cache/stats": ("GET", self._get_cache_stats),
            EVENTS_PATH.encode(): ("GET", self._get_cache_events),
            b"/cache/explain": ("POST", self._post_cache_explain),
            b"/cache/delete": ("POST", self._post_cache_delete),
            b"/v1/models": ("GET", self._get_models),
            b"/v1/completions": ("POST", self._post_completion),
            b"/v1/chat/completions": ("POST", self._post_chat),
        }

    def attach(self, runner: Runner) -> None:
        """From now on the replica is ready."""
        self._health.runner = runner

    def start_draining(self) -> None:
        """From now on new work is refused; running answers go on."""
        self._health.draining = True
        self._events.close()

    async def __call__(self, scope: Message, receive: ASGIReceive, send: ASGISend) -> None:
        assert scope["type"] == "http", scope["type"]
        exchange = Exchange(scope, receive, send)
        request_id = secrets.token_hex(12)
        route = "other"
        try:
            tenant = self._admit(exchange)
            route, handler = self._route(exchange)
            await handler(exchange, tenant, request_id)
        except ClientGone:
            self._metrics.aborted()
            return
        except Exception as error:  # noqa: BLE001 - the one place where all of them end
            await self._fail(exchange, error, request_id)
        self._metrics.answered(route, exchange.status)

    def _admit(self, exchange: Exchange) -> str:
        """The tenant. On the raw path and before routing: nothing decoded can open a door."""
        if exchange.path in (b"/health", b"/ready"):
            return ""
        tenant = self._gate.tenant_of(exchange.headers)
        if tenant is None:
            raise InvalidRequest(
                "a valid API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                status=401,
            )
        return tenant

    def _route(self, exchange: Exchange) -> tuple[str, Handler]:
        found = self._routes.get(exchange.path)
        if found is None and exchange.path.startswith(MODEL_PREFIX):
            found = ("GET", self._get_model)
        if found is None:
            raise InvalidRequest("no such path", code="not_found", status=404)
        method, handler = found
        if exchange.method != method and (exchange.method, method) != ("HEAD", "GET"):
            raise InvalidRequest(
                f"this path takes {method} only", code="method_not_allowed", status=405
            )
        route = exchange.path if exchange.path in self._routes else MODEL_PREFIX + b"{id}"
        return route.decode(), handler

    async def _fail(self, exchange: Exchange, error: Exception, request_id: str) -> None:
        failure = replies.failure_of(error, request_id)
        if failure.status == 500:
            log_failure(error, request_id, id_of(exchange.span))
        if exchange.status:
            await exchange.end(replies.error_event(failure))
            exchange.status = failure.status  # counted as what it was, though sent as 200
            return
        headers = failure_headers(failure, request_id)
        await exchange.respond(failure.status, replies.error_body(failure), headers=headers)

    # Routes. Each takes (exchange, tenant, request_id).

    async def _get_health(self, exchange: Exchange, _: str, __: str) -> None:
        deep = urllib.parse.parse_qs(exchange.query).get(b"deep") == [b"1"]
        healthy, body = await self._health.live(deep=deep)
        await exchange.respond(200 if healthy else 503, msgspec.json.encode(body))

    async def _get_ready(self, exchange: Exchange, _: str, __: str) -> None:
        ready, body = self._health.ready()
        runner = self._health.runner
        slots = () if runner is None else ((b"x-bul-slots", b"%d" % runner.core.slots),)
        await exchange.respond(200 if ready else 503, msgspec.json.encode(body), headers=slots)

    async def _get_metrics(self, exchange: Exchange, tenant: str, _: str) -> None:
        self._only_totals(tenant)
        kind = exposition.CONTENT_TYPE.encode()
        await exchange.respond(200, self._metrics.text(), content_type=kind)

    async def _get_signals(self, exchange: Exchange, tenant: str, _: str) -> None:
        self._only_totals(tenant)
        body = scaling_metrics(self._window, self._machine(), self._clock.now_s())
        await exchange.respond(200, msgspec.json.encode(body))

    async def _get_cache_stats(self, exchange: Exchange, tenant: str, _: str) -> None:
        self._only_totals(tenant)
        await exchange.respond(200, stats_body(self._cache()))

    async def _get_cache_events(self, exchange: Exchange, tenant: str, _: str) -> None:
        self._only_totals(tenant)
        await self._events.follow(exchange)

    async def _post_cache_explain(self, exchange: Exchange, tenant: str, _: str) -> None:
        explainer, tokens = await self._prompt_asked_about(exchange)
        totals = self._gate.may_see_totals(tenant)
        shown = await asyncio.to_thread(
            explainer.explain, tokens, self._salt(tenant), identities=totals
        )
        await exchange.respond(200, shown)

    async def _post_cache_delete(self, exchange: Exchange, tenant: str, _: str) -> None:
        self._only_totals(tenant)
        explainer, tokens = await self._prompt_asked_about(exchange)
        left = await asyncio.to_thread(explainer.delete, tokens, self._salt(tenant))
        await exchange.respond(200, left)

    async def _prompt_asked_about(self, exchange: Exchange) -> tuple[Explainer, list[int]]:
        runner, cache = self._runner(), self._cache()
        if cache is None:
            raise InvalidRequest("this replica has no cache", code="not_found", status=404)
        body = await exchange.body(BODY_BYTES_MAX)
        job = explain_job(body, context_tokens=runner.core.context_tokens)
        if job.model != runner.core.model_id:
            raise _no_such_model(job.model)
        [tokens] = await self._tokenize(runner, job)
        return Explainer(cache=cache, core=runner.core, identities=self._identities), tokens

    def _only_totals(self, tenant: str) -> None:
        if not self._gate.may_see_totals(tenant):
            raise InvalidRequest(
                "this page is about all tenants; use the key named 'operator'",
                code="forbidden",
                status=403,
            )

    async def _get_models(self, exchange: Exchange, _: str, __: str) -> None:
        await exchange.respond(200, msgspec.json.encode(self._models()))

    async def _get_model(self, exchange: Exchange, _: str, __: str) -> None:
        wanted = urllib.parse.unquote_to_bytes(exchange.path.removeprefix(MODEL_PREFIX))
        model = self._models()["data"][0]
        if wanted != model["id"].encode():
            raise _no_such_model(wanted.decode("utf-8", "replace"))
        await exchange.respond(200, msgspec.json.encode(model))

    def _models(self) -> dict[str, Any]:
        core = self._runner().core
        return replies.model_list(core.model_id, core.engine_name, self._created_s)

    async def _post_chat(self, exchange: Exchange, tenant: str, request_id: str) -> None:
        await self._generate(exchange, parse_chat, tenant, request_id)

    async def _post_completion(self, exchange: Exchange, tenant: str, request_id: str) -> None:
        await self._generate(exchange, parse_completion, tenant, request_id)

    async def _generate(
        self, exchange: Exchange, parse: Callable[..., Job], tenant: str, request_id: str
    ) -> None:
        with traced(self._tracer, exchange, request_id):
            await self._generate_traced(exchange, parse, tenant, request_id)

    async def _generate_traced(
        self, exchange: Exchange, parse: Callable[..., Job], tenant: str, request_id: str
    ) -> None:
        runner = self._runner()
        wanted = await read_body(exchange, self._resume_secret)
        job = parse(wanted.body, context_tokens=runner.core.context_tokens)
        if job.model != runner.core.model_id:
            raise _no_such_model(job.model)
        if wanted.sent is not None:
            check_job(job)
        work = self._run(exchange, runner, job, wanted, tenant, request_id)
        await exchange.while_connected(work)

    async def _run(
        self,
        exchange: Exchange,
        runner: Runner,
        job: Job,
        wanted: Wanted,
        tenant: str,
        request_id: str,
    ) -> None:
        started_s = self._clock.now_s()
        prompts = await self._tokenize(runner, job)
        key, salt = exchange.header(b"authorization"), self._salt(tenant)
        self._events.note_job(job, prompts, core=runner.core, salt=salt, authorization=key)
        requests = requests_of(
            job,
            prompts,
            request_id=request_id,
            tenant=tenant,
            salt=salt,
            use_cache=wants_cache(exchange),
            priority=priority(exchange),
            context_tokens=runner.core.context_tokens,
            resumed=wanted.sent.tokens if wanted.sent else (),
            span=exchange.span,
        )
        tell_job(exchange, job, len(requests))
        reply = Reply(
            kind=job.kind,
            request_id=request_id,
            model=job.model,
            created_s=int(self._clock.wall_s()),
            shows_tokens=wanted.shows_tokens and len(requests) == 1,
            sent=wanted.sent,
        )
        generation = Generation(
            runner, requests, job=job, reply=reply, clock=self._clock, observer=self._metrics
        )
        whole = False
        try:
            if job.stream:
                await generation.answer_streamed(exchange)
            else:
                await generation.answer_whole(exchange)
            whole = True
        finally:
            tell_generation(exchange, generation)
            failed = not (whole or exchange.gone)
            self._count(generation, tenant, started_s, whole=whole, failed=failed)

    async def _tokenize(self, runner: Runner, job: Job) -> list[list[int]]:
        if text_chars(job) <= INLINE_TEXT_MAX:
            return prompt_tokens(runner.core, job)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizers, prompt_tokens, runner.core, job)

    def _salt(self, tenant: str) -> bytes:
        share = self._config.share_between_tenants
        return tenant_salt(self._config.cache_secret, tenant, share=share)

    def _runner(self) -> Runner:
        ready, body = self._health.ready()
        if not ready or self._health.runner is None:
            raise EngineClosed(f"this replica is {body['status']}")
        return self._health.runner

    def _count(
        self,
        generation: Generation,
        tenant: str,
        started_s: float,
        *,
        whole: bool,
        failed: bool,
    ) -> None:
        """What was generated counts in any case; only a whole answer has a latency."""
        now_s = self._clock.now_s()
        counts = {
            "prompt_tokens": generation.prompt_tokens,
            "cached_tokens": generation.cached_tokens,
            "output_tokens": generation.generated_tokens,
        }
        latency_s = now_s - started_s if whole else None
        self._metrics.generated(latency_s, self._gate.class_of(tenant), **counts)
        self._bill(tenant, self._runner_model(), Spent(requests=int(whole), **counts))
        self._window.add(
            Finished(
                at_s=now_s, failed=failed, latency_s=latency_s, ttft_s=generation.ttft_s, **counts
            )
        )

    def _runner_model(self) -> str:
        return self._health.runner.core.model_id if self._health.runner is not None else ""

    def _cache_figures(self) -> CacheFigures:
        cache = self._cache()
        return ({}, {}) if cache is None else (cache.stats(), cache.stats_by_class())

    def _machine(self) -> Gauges:
        return Gauges(
            cpu_utilization=self._cpu.utilization(),
            memory_utilization=memory_utilization(),
            active_connections=self.connections(),
        )

    def _gauges(self) -> dict[str, float]:
        machine = dataclasses.asdict(self._machine())
        seen = {name: value for name, value in machine.items() if value is not None}
        return self._health.gauges() | dict(self._more_gauges()) | seen


def _no_such_model(name: str) -> InvalidRequest:
    message = f"the model {name[:100]!r} does not exist here; GET /v1/models lists what does"
    return InvalidRequest(message, param="model", code="model_not_found", status=404)
