"""Turns a checked request into token ids; contents stay text, never control tokens.

Refuses to tokenise what cannot fit: a text of more than 64 characters per token of context is
turned away by its length alone, since four megabytes would keep a tokenizer busy for seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from bul.errors import InvalidRequest
from bul.inference.contract import ModelCore
from bul.service.openai import Job

__all__ = ["prompt_tokens", "text_chars"]

TEXT_CHARS_PER_TOKEN_MAX = 64


def text_chars(job: Job) -> int:
    """How much text there is to tokenise, to decide where to do it."""
    contents = sum(len(message.content) for message in job.messages)
    return contents + sum(len(prompt) for prompt in job.prompts if isinstance(prompt, str))


def prompt_tokens(core: ModelCore, job: Job) -> list[list[int]]:
    """Token ids per prompt, each not empty and within the context. Raises InvalidRequest."""
    if job.kind == "chat":
        _check_text(core, "messages", text_chars(job))
        return [_checked(core, job, "messages", core.tokenize_chat(job.messages))]
    several = len(job.prompts) > 1
    found = []
    for at, prompt in enumerate(job.prompts):
        param = f"prompt[{at}]" if several else "prompt"
        if isinstance(prompt, str):
            _check_text(core, param, len(prompt))
            tokens = core.tokenize(prompt, special=False)
        else:
            tokens = list(prompt)
            _check_ids(core, param, tokens)
        found.append(_checked(core, job, param, tokens))
    return found


def _check_text(core: ModelCore, param: str, size: int) -> None:
    most = core.context_tokens * TEXT_CHARS_PER_TOKEN_MAX
    if size > most:
        raise InvalidRequest(
            f"{param} has {size} characters; a context of {core.context_tokens} tokens cannot "
            f"hold more than {most}",
            param=param,
            code="context_length_exceeded",
        )


def _check_ids(core: ModelCore, param: str, tokens: Sequence[int]) -> None:
    for at, token in enumerate(tokens):
        if not _known(core, token):
            raise InvalidRequest(
                f"{param}[{at}] is not a token of this model", param=param, code="invalid_value"
            )


def _known(core: ModelCore, token: int) -> bool:
    try:
        core.token_bytes(token)
    except (IndexError, OverflowError):
        return False
    return True


def _checked(core: ModelCore, job: Job, param: str, tokens: list[int]) -> list[int]:
    context = core.context_tokens
    if not tokens:
        raise InvalidRequest(
            f"{param} must hold at least one token", param=param, code="invalid_value"
        )
    if len(tokens) >= context:
        raise InvalidRequest(
            f"{param} has {len(tokens)} tokens; the context holds {context}, answer included",
            param=param,
            code="context_length_exceeded",
        )
    if job.max_tokens is not None and len(tokens) + job.max_tokens > context:
        raise InvalidRequest(
            f"{len(tokens)} prompt tokens and {job.max_tokens_param} {job.max_tokens} are more "
            f"than the context of {context}",
            param=job.max_tokens_param,
            code="context_length_exceeded",
        )
    return tokens
