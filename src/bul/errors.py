"""Every error that BUL raises on purpose, in one tree.

BulError
├── ConfigError            a setting is wrong; the message names it and the legal values
├── InvalidRequest         a client's request is wrong; carries the OpenAI `param` and `code`
├── Overloaded             no room within the deadline; carries `retry_after_s`
├── BlockCorrupted         bytes do not match their checksum, length or identity
├── TierUnavailable        a tier is broken, hung or shut off by its breaker
├── ModelUnavailable       a model file is missing, damaged or not loadable
├── TraceInvalid           a trace file is missing, damaged or empty; the message names the line
├── EngineClosed           the engine or runner has stopped
├── EngineFailed           the model failed while it computed this request
├── AccountsUnavailable    the database of keys and usage is away
└── DriverError            replicas could not be started, stopped or listed

Each carries a `hint`: the next step for the person who reads it.
"""

from __future__ import annotations

__all__ = [
    "AccountsUnavailable",
    "BlockCorrupted",
    "BulError",
    "ConfigError",
    "DriverError",
    "EngineClosed",
    "EngineFailed",
    "InvalidRequest",
    "ModelUnavailable",
    "Overloaded",
    "TierUnavailable",
    "TraceInvalid",
]


class BulError(Exception):
    """Base of the tree. `hint` is the next step, or an empty string."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class ConfigError(BulError):
    """A setting is unknown, of the wrong type, or out of its range."""


class InvalidRequest(BulError):
    """A client's request cannot be served; becomes a 4xx in OpenAI's shape."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code
        self.status = status


class Overloaded(BulError):
    """There is no room for this request within its deadline."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class BlockCorrupted(BulError):
    """A block's bytes are not what its header says; never served, always a miss."""


class TierUnavailable(BulError):
    """A tier did not answer within its deadline, failed, or is shut off by its breaker."""


class ModelUnavailable(BulError):
    """The model file is missing, damaged, or of a kind that the engine cannot load."""


class TraceInvalid(BulError):
    """A trace cannot be read; the message names the file and the line."""


class EngineClosed(BulError):
    """The engine or its runner has been closed."""


class EngineFailed(BulError):
    """The model failed while it computed this request; others go on. Becomes a 500."""


class AccountsUnavailable(BulError):
    """The accounts' database cannot be reached or used; requests go on without it."""


class DriverError(BulError):
    """A driver could not start, stop or list replicas."""
