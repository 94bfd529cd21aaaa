import json
from typing import Any

import pytest

from bul.errors import InvalidRequest
from bul.inference.contract import ChatMessage
from bul.service.openai import Job, parse_chat, parse_completion

CONTEXT = 4096
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> Job:
    return parse_chat(json.dumps(CHAT | fields).encode(), context_tokens=CONTEXT)


def completion(**fields: Any) -> Job:
    return parse_completion(json.dumps(COMPLETION | fields).encode(), context_tokens=CONTEXT)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


WRONG_IN_BOTH = [
    ({"model": 1}, "model", "invalid_type"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": CONTEXT + 1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
    ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"seed": 1 << 63}, "seed", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": "x" * 257}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop[0]", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    ({"logprobs": True}, "logprobs", "unsupported_parameter"),
    ({"prompt_cache_key": "x" * 257}, "prompt_cache_key", "invalid_value"),
    ({"top_k": 5}, "top_k", "unknown_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG_IN_BOTH)
@pytest.mark.parametrize("parse", [chat, completion])
def test_a_wrong_field_is_named(parse: Any, fields: Any, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [CHAT["messages"][0]] * 1025}, "messages"),
        ({"messages": "hi"}, "messages"),
        (message(role="robot"), "messages[0].role"),
        (message(content=None), "messages[0].content"),
        (message(content=[{"type": "image_url", "image_url": {}}]), "messages[0].content[0].type"),
        (message(content=[{"type": "text"}]), "messages[0].content[0].text"),
        (message(content=[{"type": "text", "text": "a"}] * 257), "messages[0].content"),
        (message(tool_calls=[{"id": "1"}]), "messages[0].tool_calls"),
        (message(shout=True), "messages[0].shout"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": -5}, "max_completion_tokens"),
    ],
)
def test_a_wrong_chat_field_is_named(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1 << 32]]}, "prompt[0][0]"),
        ({"prompt": [1] * (CONTEXT + 1)}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
    ],
)
def test_a_wrong_completion_field_is_named(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    body = {key: value for key, value in CHAT.items() if key != name}
    with pytest.raises(InvalidRequest, match=f"{name} is required") as caught:
        parse_chat(json.dumps(body).encode(), context_tokens=CONTEXT)
    assert caught.value.param == name


def test_an_unknown_field_names_the_nearest_known_one() -> None:
    with pytest.raises(InvalidRequest, match="did you mean max_tokens"):
        chat(max_token=5)


@pytest.mark.security
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model":"m"} x',
        b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b'{"model":"m","temperature":1e999}',
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","metadata":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"' + b"x" * 100_000 + b'":1}',
    ],
)
def test_no_bytes_get_past_the_parser_as_anything_but_invalid_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body, context_tokens=CONTEXT)
    assert len(str(caught.value)) < 400


def test_fields_that_ask_for_nothing_are_taken() -> None:
    job = chat(
        user="u",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        logprobs=False,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        n=None,
        stop=None,
        parallel_tool_calls=True,
    )
    assert job.n == 1
    assert completion(best_of=1, echo=False, suffix="").prompts == ("hi",)
    assert completion(best_of=3, n=3).n == 3


def test_content_parts_are_joined_and_developer_counts_as_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    job = chat(messages=[{"role": "developer", "content": parts}])
    assert job.messages == (ChatMessage(role="system", content="ab"),)


def test_limits_are_inclusive() -> None:
    assert chat(max_tokens=CONTEXT).max_tokens == CONTEXT
    assert chat(max_tokens=1, n=8, temperature=2.0, top_p=1.0).n == 8
    assert chat(stop=["x" * 256] * 4).sampling.stop == ("x" * 256,) * 4
    assert len(completion(prompt=["a"] * 16).prompts) == 16
    assert completion(prompt=[0, (1 << 32) - 1]).prompts == ((0, (1 << 32) - 1),)
    assert completion(prompt=[[1], [2, 3], "a"]).prompts == ((1,), (2, 3), "a")


def test_defaults_are_those_of_openai() -> None:
    assert completion().max_tokens == 16
    assert chat().max_tokens is None
    assert chat().sampling.temperature == 1.0
    assert not chat().stream


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
