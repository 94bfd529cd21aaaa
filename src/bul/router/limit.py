"""How many requests a replica may have under way: what it says that it batches, else what is found.

Refuses to know why a replica is slow. A replica of ours tells its slots; twice as many requests
keep every batch full, and whoever is beyond waits in our line, where priority and fairness are.
From there, or from the configured most where nothing was told, the limit is tried out:

    refused (429)   a tenth less
    late            as many as would have been in time: `ahead` requests made this one wait for
                    `waited_s`, so a share target_s / waited_s of them would have been right
                    (Little's law; the queue of a batch is what is proportional), at most half less
    in time         one more in so many, up to twice what the slots give when there is a target
                    that would tell that it was too many (Chiu and Jain, 1989)

Between two decreases as many answers must come as were under way, because those were all sent
under the old limit. Worked: 4 slots, 100 under way, a target of 0.5 s that took 4 s: 100 x 1/8
is 13, so 100 -> 50 -> 25 -> 13 in three rounds, where a tenth each time would take 20.
"""

from __future__ import annotations

__all__ = ["ConcurrencyLimit"]

DECREASE = 0.9
DECREASE_MOST = 0.5
GROWTH_MOST = 2.0


class ConcurrencyLimit:
    """`now` is the limit, in [least, most]; it begins at `most`.

    per_slot: requests per slot that a replica tells, 0 to believe none. has_target: whether late
    answers are told, so that growing is safe.
    """

    __slots__ = (
        "_answers_to_skip",
        "_ceiling",
        "_growth",
        "_per_slot",
        "_slots",
        "least",
        "most",
        "now",
    )

    def __init__(self, most: int, *, per_slot: float = 0.0, has_target: bool = False) -> None:
        assert most >= 1
        self.most = float(most)
        self.least = 1.0
        self.now = float(most)
        self._per_slot = per_slot
        self._growth = GROWTH_MOST if has_target else 1.0
        self._ceiling = self.most
        self._slots = 0
        self._answers_to_skip = 0

    def told(self, slots: int) -> None:
        """The replica says how many requests it batches."""
        if slots < 1 or slots == self._slots or not self._per_slot:
            return
        self._slots = slots
        self.least = min(self.most, float(slots))
        self.now = min(self.most, max(self.least, self._per_slot * slots))
        self._ceiling = min(self.most, self._growth * self.now)

    def good(self, in_flight: int) -> None:
        """An answer came in time, while this many were under way."""
        if self._answers_to_skip:
            self._answers_to_skip -= 1
        if self.now < self._ceiling and in_flight >= self.now / 2:
            self.now = min(self._ceiling, self.now + 1 / self.now)

    def overloaded(self, in_flight: int) -> None:
        """An answer was refused, while this many were under way, itself included."""
        self._decrease(min(self.now, in_flight) * DECREASE)

    def late(self, ahead: int, share: float) -> None:
        """An answer took 1 / share times as long as it should, `ahead` having been under way."""
        wanted = min(self.now, (ahead + 1) * share)
        self._decrease(max(wanted, self.now * DECREASE_MOST))

    def _decrease(self, wanted: float) -> None:
        if self._answers_to_skip:
            self._answers_to_skip -= 1
            return
        self.now = max(self.least, wanted)
        self._answers_to_skip = int(self.now)
