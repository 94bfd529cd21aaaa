"""Where a reply stands after tokens that another replica has generated: text held back, or over.

Refuses ids that are no tokens of this model.
"""

from __future__ import annotations

from bul.errors import InvalidRequest
from bul.inference.contract import FinishReason, GenerateRequest, ModelCore
from bul.inference.stops import TextStream

__all__ = ["ended_with", "text_after"]


def text_after(request: GenerateRequest, core: ModelCore) -> TextStream:
    """The text's state after `request.resumed`: what was held back there, is held here."""
    text = TextStream(request.sampling.stop)
    for token in request.resumed:
        try:
            text.push(core.token_bytes(token))
        except (IndexError, OverflowError):
            raise InvalidRequest(f"{token} is not a token of this model") from None
    return text


def ended_with(request: GenerateRequest, core: ModelCore) -> FinishReason | None:
    """Why there is nothing to generate after `request.resumed`; None if there is."""
    if text_after(request, core).stopped:
        return "stop"
    room = core.context_tokens - len(request.tokens)
    over = len(request.resumed) >= min(request.sampling.max_tokens, room)
    return "length" if over and request.resumed else None
