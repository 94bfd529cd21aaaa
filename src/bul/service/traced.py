"""A replica's span of one generation request, from its head to the end of its answer.

Refuses to trace anything else (probes and scrapes are no requests), and to tell more than figures:
no text, no tenant, and of an error its code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bul.service import replies
from bul.service.asgi import ClientGone, Exchange
from bul.service.generation import Generation
from bul.service.openai import Job
from bul.tracing import HEADER, Tracer

__all__ = ["tell_generation", "tell_job", "traced"]


@contextlib.contextmanager
def traced(tracer: Tracer | None, exchange: Exchange, request_id: str) -> Iterator[None]:
    """`exchange` has a span until the block ends, which passes every error on."""
    if tracer is None:
        yield
        return
    parents = [value for name, value in exchange.headers if name == HEADER]
    span = exchange.span = tracer.start("bul.replica.request", parents)
    span.set(
        {
            "http.request.method": exchange.method,
            "url.path": exchange.path.decode(),  # one of our own: it was routed by it
            "bul.request_id": request_id,
        }
    )
    try:
        yield
        span.set({"http.response.status_code": exchange.status})
    except ClientGone:
        span.fail("the client left")
        raise
    except Exception as error:
        failure = replies.failure_of(error, request_id)
        span.set({"http.response.status_code": exchange.status or failure.status})
        span.fail(failure.code or type(error).__name__)
        raise
    except BaseException:
        span.fail("cancelled")
        raise
    finally:
        span.end()


def tell_job(exchange: Exchange, job: Job, request_count: int) -> None:
    """What was asked for, once it is known to be sound."""
    if exchange.span is not None:
        exchange.span.set({"bul.stream": job.stream, "bul.sequences": request_count})


def tell_generation(exchange: Exchange, generation: Generation) -> None:
    """What came of it, whole or not."""
    span = exchange.span
    if span is None:
        return
    span.set(
        {
            "gen_ai.usage.input_tokens": generation.prompt_tokens,
            "gen_ai.usage.output_tokens": generation.generated_tokens,
            "bul.cached_tokens": generation.cached_tokens,
        }
    )
    if generation.ttft_s is not None:
        span.set({"bul.ttft_ms": round(generation.ttft_s * 1000, 3)})
