"""What a failed request leaves: the headers of its answer, and a line in the log.

Refuses to log a foreign exception's words: they may quote a prompt.
"""

from __future__ import annotations

import logging
import traceback

from bul.errors import BulError
from bul.service.replies import Failure

__all__ = ["failure_headers", "log_failure"]

logger = logging.getLogger(__name__)


def failure_headers(failure: Failure, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
    """Beside the body's own."""
    headers = [(b"x-request-id", request_id.encode())]
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(failure.retry_after_s))))
    if failure.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return tuple(headers)


def log_failure(error: Exception, request_id: str, trace_id: str = "") -> None:
    """Where it happened, and in our own words if they are ours."""
    source = error.__cause__ or error
    words = str(source) if isinstance(source, BulError) else type(source).__name__
    frames = "".join(traceback.format_tb(source.__traceback__))
    request = f"{request_id} (trace_id {trace_id})" if trace_id else request_id
    logger.error("request %s failed: %s\n%s", request, words, frames)
