"""The replica's side of a stream that broke off elsewhere: take it up, or say why not.

Refuses what cannot go on as it would have gone on: several choices, random draws without a seed,
answers that are not streamed. What a seal proves is in `inference/resume.py`.
"""

from __future__ import annotations

import dataclasses

from bul.errors import InvalidRequest
from bul.inference.resume import HEADER, OFFER, SENT_BYTES_MAX, Sent, open_sealed
from bul.service.asgi import Exchange
from bul.service.openai import BODY_BYTES_MAX, Job

__all__ = ["Wanted", "check_job", "read_body"]


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """body: the client's own. shows_tokens: the events shall say them. sent: what is not to be
    said again, None for a new answer.
    """

    body: bytes
    shows_tokens: bool = False
    sent: Sent | None = None


async def read_body(exchange: Exchange, secret: str | None) -> Wanted:
    """The request's body, and what its x-bul-resume says about it.

    secret: the region's; None where no seal can be believed. Raises InvalidRequest, ClientGone.
    """
    given = exchange.header(HEADER)
    if given in (b"", OFFER):
        return Wanted(await exchange.body(BODY_BYTES_MAX), shows_tokens=bool(given))
    body = await exchange.body(BODY_BYTES_MAX + SENT_BYTES_MAX)
    if secret is None:
        raise InvalidRequest("no seal is known here", code="forbidden", status=403)
    sent, rest = open_sealed(
        secret,
        given,
        target=exchange.path,
        authorization=exchange.header(b"authorization"),
        body=body,
    )
    return Wanted(rest, shows_tokens=True, sent=sent)


def check_job(job: Job) -> None:
    """Raise InvalidRequest for a job of which nobody can say how it would have gone on."""
    repeats = job.sampling.temperature <= 0.0 or job.sampling.seed is not None
    if not (job.stream and job.n == 1 and len(job.prompts) <= 1 and repeats):
        raise InvalidRequest("only one greedy or seeded stream can be resumed")
