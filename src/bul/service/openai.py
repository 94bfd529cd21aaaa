"""Parses and checks request bodies in OpenAI's format, as pure functions over bytes.

Refuses what it does not know or cannot do, naming the field: a client that asks for `top_k` or
`logprobs` and silently gets something else has been lied to. Fields that change nothing about
the answer (`user`, `store`, `metadata`, ...) are taken and ignored. Every size has a limit here,
before any of it reaches a tokenizer.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal, NoReturn

import msgspec

from bul.errors import InvalidRequest
from bul.inference.contract import ChatMessage, Sampling
from bul.service.decoding import decode

__all__ = [
    "BODY_BYTES_MAX",
    "N_MAX",
    "PROMPTS_MAX",
    "Job",
    "parse_chat",
    "parse_completion",
]

BODY_BYTES_MAX = 4 << 20
N_MAX = 8
PROMPTS_MAX = 16
MESSAGES_MAX = 1024
PARTS_MAX = 256
STOPS_MAX = 4
STOP_CHARS_MAX = 256
SESSION_CHARS_MAX = 256
TEMPERATURE_MAX = 2.0
COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's default for /v1/completions; a chat without a limit may use the whole context."""

ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"developer": "system"}
NEUTRAL = ("null", "false", "0", "0.0", "[]", "{}")
"""Values that ask for nothing, so that a client which always sends the field is served."""

Raw = msgspec.Raw
ABSENT = Raw(b"null")
Prompt = str | tuple[int, ...]


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both routes share. `Raw` fields are never decoded: they are no-ops or refused."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    prompt_cache_key: str | None = None
    # Harmless: they say who asks or how to bill, not what to answer.
    user: Raw = ABSENT
    store: Raw = ABSENT
    metadata: Raw = ABSENT
    service_tier: Raw = ABSENT
    safety_identifier: Raw = ABSENT
    prompt_cache_retention: Raw = ABSENT
    # Not supported: anything but a neutral value is refused.
    logit_bias: Raw = ABSENT
    logprobs: Raw = ABSENT


class _ChatBody(_Common, kw_only=True, forbid_unknown_fields=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None
    parallel_tool_calls: Raw = ABSENT
    tool_choice: Raw = ABSENT
    verbosity: Raw = ABSENT
    top_logprobs: Raw = ABSENT
    tools: Raw = ABSENT
    functions: Raw = ABSENT
    function_call: Raw = ABSENT
    response_format: Raw = ABSENT
    modalities: Raw = ABSENT
    audio: Raw = ABSENT
    prediction: Raw = ABSENT
    reasoning_effort: Raw = ABSENT
    web_search_options: Raw = ABSENT


class _CompletionBody(_Common, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: Raw = ABSENT
    suffix: Raw = ABSENT


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Raw = ABSENT
    function_call: Raw = ABSENT
    refusal: Raw = ABSENT
    audio: Raw = ABSENT
    annotations: Raw = ABSENT


UNSUPPORTED_CHAT = {
    "logit_bias": NEUTRAL,
    "logprobs": NEUTRAL,
    "top_logprobs": NEUTRAL,
    "tools": NEUTRAL,
    "functions": NEUTRAL,
    "function_call": (*NEUTRAL, '"none"', '"auto"'),
    "tool_choice": (*NEUTRAL, '"none"', '"auto"'),
    "response_format": ("null", '{"type":"text"}'),
    "modalities": (*NEUTRAL, '["text"]'),
    "audio": NEUTRAL,
    "prediction": NEUTRAL,
    "reasoning_effort": ("null", '"none"'),
    "web_search_options": ("null",),
}
UNSUPPORTED_COMPLETION = {
    "logit_bias": NEUTRAL,
    # logprobs: 0 asks for the chosen token's own log-probability, so it is not neutral.
    "logprobs": ("null", "false"),
    "echo": NEUTRAL,
    "suffix": ("null", '""'),
}
UNSUPPORTED_MESSAGE = ("tool_calls", "function_call", "refusal", "audio")

_chat_decoder = msgspec.json.Decoder(_ChatBody)
_completion_decoder = msgspec.json.Decoder(_CompletionBody)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One checked request. Exactly one of `messages` and `prompts` is not empty.

    `max_tokens` is None for "what the context leaves"; `sampling.max_tokens` is then without
    meaning until the prompt's length is known. session: `prompt_cache_key`, "" if absent.
    """

    kind: Literal["chat", "completion"]
    model: str
    messages: tuple[ChatMessage, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    n: int
    max_tokens: int | None
    max_tokens_param: str
    sampling: Sampling
    stream: bool
    include_usage: bool
    session: str


def parse_chat(body: bytes, *, context_tokens: int) -> Job:
    """The body of POST /v1/chat/completions. Raises InvalidRequest that names the field."""
    parsed = decode(_chat_decoder, body)
    _refuse_unsupported(parsed, UNSUPPORTED_CHAT)
    messages = _messages(parsed.messages)
    param = "max_tokens" if parsed.max_completion_tokens is None else "max_completion_tokens"
    asked = parsed.max_tokens if param == "max_tokens" else parsed.max_completion_tokens
    return _job(parsed, "chat", asked, param, context_tokens, messages=messages)


def parse_completion(body: bytes, *, context_tokens: int) -> Job:
    """The body of POST /v1/completions. Raises InvalidRequest that names the field."""
    parsed = decode(_completion_decoder, body)
    _refuse_unsupported(parsed, UNSUPPORTED_COMPLETION)
    if parsed.best_of not in (None, 1, parsed.n):
        _refuse("best_of", "best_of is not supported: leave it out", code="unsupported_parameter")
    prompts = _prompts(parsed.prompt, context_tokens)
    asked = COMPLETION_TOKENS_DEFAULT if parsed.max_tokens is None else parsed.max_tokens
    return _job(parsed, "completion", asked, "max_tokens", context_tokens, prompts=prompts)


def _job(
    parsed: _Common,
    kind: Literal["chat", "completion"],
    max_tokens: int | None,
    max_tokens_param: str,
    context_tokens: int,
    *,
    messages: tuple[ChatMessage, ...] = (),
    prompts: tuple[Prompt, ...] = (),
) -> Job:
    if max_tokens is not None:
        _between(max_tokens_param, max_tokens, 1, context_tokens)
    n = 1 if parsed.n is None else parsed.n
    _between("n", n, 1, N_MAX)
    session = parsed.prompt_cache_key or ""
    if len(session) > SESSION_CHARS_MAX:
        _refuse("prompt_cache_key", f"prompt_cache_key: at most {SESSION_CHARS_MAX} characters")
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(parsed, name) not in (None, 0.0):
            _refuse(name, f"{name} is not supported: leave it out", code="unsupported_parameter")
    options = parsed.stream_options
    if options is not None and not parsed.stream:
        _refuse("stream_options", "stream_options is only for stream: true")
    return Job(
        kind=kind,
        model=parsed.model,
        messages=messages,
        prompts=prompts,
        n=n,
        max_tokens=max_tokens,
        max_tokens_param=max_tokens_param,
        sampling=_sampling(parsed, max_tokens or 1),
        stream=bool(parsed.stream),
        include_usage=options is not None and bool(options.include_usage),
        session=session,
    )


def _sampling(parsed: _Common, max_tokens: int) -> Sampling:
    temperature = 1.0 if parsed.temperature is None else parsed.temperature
    top_p = 1.0 if parsed.top_p is None else parsed.top_p
    _between("temperature", temperature, 0.0, TEMPERATURE_MAX)
    if not 0.0 < top_p <= 1.0:
        _refuse("top_p", f"top_p must be in (0, 1], was {top_p}")
    seed = parsed.seed
    if seed is not None:
        _between("seed", seed, -(1 << 63), (1 << 63) - 1)
        seed %= 1 << 63
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=_stops(parsed.stop),
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > STOPS_MAX:
        _refuse("stop", f"stop: at most {STOPS_MAX} strings, got {len(stops)}")
    for text in stops:
        if not 1 <= len(text) <= STOP_CHARS_MAX:
            _refuse("stop", f"stop: each string must have 1 to {STOP_CHARS_MAX} characters")
    return stops


def _messages(given: list[_Message]) -> tuple[ChatMessage, ...]:
    if not 1 <= len(given) <= MESSAGES_MAX:
        _refuse("messages", f"messages: 1 to {MESSAGES_MAX} are allowed, got {len(given)}")
    return tuple(_message(message, f"messages[{at}]") for at, message in enumerate(given))


def _message(message: _Message, path: str) -> ChatMessage:
    role = ROLES.get(message.role)
    if role is None:
        _refuse(f"{path}.role", f"{path}.role must be one of {', '.join(ROLES)}")
    for name in UNSUPPORTED_MESSAGE:
        if not _asks_nothing(getattr(message, name), NEUTRAL):
            _refuse(
                f"{path}.{name}", f"{path}.{name} is not supported", code="unsupported_parameter"
            )
    return ChatMessage(role=role, content=_content(message.content, f"{path}.content"))


def _content(content: str | list[_Part] | None, path: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        _refuse(path, f"{path} must be a string or a list of text parts")
    if len(content) > PARTS_MAX:
        _refuse(path, f"{path}: at most {PARTS_MAX} parts")
    texts = []
    for at, part in enumerate(content):
        if part.type != "text":
            _refuse(
                f"{path}[{at}].type",
                f"{path}[{at}]: this model takes text parts only",
                code="unsupported_parameter",
            )
        if part.text is None:
            _refuse(f"{path}[{at}].text", f"{path}[{at}].text is missing")
        texts.append(part.text)
    return "".join(texts)


def _prompts(prompt: str | list[str | int | list[int]], context_tokens: int) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        _refuse("prompt", "prompt must not be an empty list")
    if isinstance(prompt[0], int):
        return (_token_prompt(prompt, "prompt", context_tokens),)
    if len(prompt) > PROMPTS_MAX:
        _refuse("prompt", f"prompt: at most {PROMPTS_MAX} in one request, got {len(prompt)}")
    return tuple(
        _one_prompt(item, f"prompt[{at}]", context_tokens) for at, item in enumerate(prompt)
    )


def _one_prompt(item: str | int | list[int], path: str, context_tokens: int) -> Prompt:
    if isinstance(item, str):
        return item
    if isinstance(item, int):
        _refuse(path, f"{path}: token ids and texts cannot be mixed")
    return _token_prompt(item, path, context_tokens)


def _token_prompt(tokens: list[Any], path: str, context_tokens: int) -> tuple[int, ...]:
    if len(tokens) > context_tokens:
        _too_long(path, len(tokens), context_tokens)
    for at, token in enumerate(tokens):
        if not isinstance(token, int) or not 0 <= token < 1 << 32:
            _refuse(f"{path}[{at}]", f"{path}[{at}] must be a token id in [0, 2**32)")
    return tuple(tokens)


def _too_long(param: str, tokens: int, context_tokens: int) -> NoReturn:
    message = f"{param} has {tokens} tokens; the context holds {context_tokens}"
    _refuse(param, message, code="context_length_exceeded")


def _refuse_unsupported(parsed: _Common, neutral: dict[str, tuple[str, ...]]) -> None:
    for name, values in neutral.items():
        if not _asks_nothing(getattr(parsed, name), values):
            message = f"{name} is not supported: leave it out"
            _refuse(name, message, code="unsupported_parameter")


def _asks_nothing(raw: Raw, neutral: tuple[str, ...]) -> bool:
    if raw is ABSENT:
        return True
    text = bytes(raw)
    return len(text) < 64 and re.sub(rb"\s", b"", text).decode("ascii", "replace") in neutral


def _between(param: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        shown = value if abs(value) < 1 << 64 else "a number beyond 64 bits"
        _refuse(param, f"{param} must be in [{low}, {high}], was {shown}")


def _refuse(param: str | None, message: str, *, code: str | None = "invalid_value") -> NoReturn:
    raise InvalidRequest(message, param=param, code=code)
