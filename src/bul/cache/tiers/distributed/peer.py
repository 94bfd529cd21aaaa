"""Another rank as seen from here: a few channels, and whether it is away.

Refuses to let a request find out twice that a rank is gone: after the first failure it is away, and
only the tier's own thread asks for it until it answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from bul.cache.tiers.distributed.channel import Channel, ChannelPlan

__all__ = ["Peer", "PeerLost"]

FAILURES = (OSError, RuntimeError, ValueError)

_T = TypeVar("_T")


class PeerLost(Exception):
    """The rank is away, or has just been lost."""


class Peer:
    """At most `channels_max` at a time; more callers wait for one, or `timeout_s`."""

    def __init__(
        self, plan: ChannelPlan, address: tuple[str, int], *, channels_max: int, timeout_s: float
    ) -> None:
        self._plan = plan
        self._address = address
        self._timeout_s = timeout_s
        self._free = threading.Semaphore(channels_max)
        self._lock = threading.Lock()
        self._idle: list[Channel] = []
        self.away = False
        self.way = ""
        self.lost_total = 0

    def call(self, act: Callable[[Channel], _T]) -> _T:
        """`act` on a channel. Raises PeerLost."""
        if self.away or not self._free.acquire(timeout=self._timeout_s):
            raise PeerLost
        try:
            return self._call(act)
        finally:
            self._free.release()

    def look_for(self) -> None:
        """Connect anew; if that succeeds it is no more away."""
        try:
            channel = Channel(self._plan, self._address)
        except FAILURES:
            return
        with self._lock:
            self._idle.append(channel)
            self.way = channel.way
            self.away = False

    def close(self) -> None:
        """Close what is idle; what is in use is closed by its user."""
        with self._lock:
            idle, self._idle, self.away = self._idle, [], True
        for channel in idle:
            channel.close()

    def _call(self, act: Callable[[Channel], _T]) -> _T:
        with self._lock:
            channel = self._idle.pop() if self._idle else None
        if channel is not None:
            try:
                return self._use(channel, act)
            except ConnectionError:
                # It may have been started again since: then a new connection works at once.
                self._drop_idle()
            except FAILURES as error:
                raise self._lost() from error
        try:
            channel = Channel(self._plan, self._address)
            self.way = channel.way
            return self._use(channel, act)
        except FAILURES as error:
            raise self._lost() from error

    def _lost(self) -> PeerLost:
        self.lost_total += 1
        self.close()
        return PeerLost()

    def _use(self, channel: Channel, act: Callable[[Channel], _T]) -> _T:
        try:
            result = act(channel)
        except BaseException:
            channel.close()
            raise
        with self._lock:
            if not self.away:
                self._idle.append(channel)
                return result
        channel.close()
        return result

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()
