"""JSON bodies as typed objects, and what is wrong with them in words that name the field.

Refuses bodies of very many strings or numbers before it decodes them: each becomes an object, and
four megabytes of `"a",` would take 76.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Final, TypeVar

import msgspec

from bul.errors import InvalidRequest

__all__ = ["COMMAS_MAX", "QUOTES_MAX", "decode"]

QUOTES_MAX: Final = 1 << 19
"""Two for each string; prose of four megabytes, with its own ones escaped, has far fewer."""
COMMAS_MAX: Final = 1 << 19
"""One for each token id: more than any context here holds."""

Body = TypeVar("Body")


def decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """The body as `decoder`'s type. Raises InvalidRequest that names the field."""
    if body.count(b'"') > QUOTES_MAX or body.count(b",") > COMMAS_MAX:
        raise InvalidRequest("the body has too many values", code="invalid_value")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error), decoder.type) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the body is not valid JSON: {str(error)[:120]}"
        raise InvalidRequest(message, code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error


_WRONG = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_NAMED = re.compile(
    r"Object (?P<how>missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL
)


def _explain(message: str, body_type: Any) -> InvalidRequest:
    """Msgspec's words as an error that names the field: "Expected `int`, got `str` - at `$.n`"."""
    found = _WRONG.fullmatch(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    named = _NAMED.fullmatch(what)
    if named is None:
        param = path[:100] or None
        return InvalidRequest(f"{param or 'body'}: {what[:200]}", param=param, code="invalid_type")
    param = f"{path}.{named['name']}".lstrip(".")[:100]
    if named["how"] == "missing required":
        return InvalidRequest(
            f"{param} is required", param=param, code="missing_required_parameter"
        )
    near = difflib.get_close_matches(param, body_type.__struct_fields__, n=1) if not path else []
    hint = f"did you mean {near[0]}?" if near else ""
    return InvalidRequest(
        f"unknown parameter {param!r}", param=param, code="unknown_parameter", hint=hint
    )
