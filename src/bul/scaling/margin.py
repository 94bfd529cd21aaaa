"""How far above its forecast `adaptive` goes: a margin, learnt from the share of slow requests.

Refuses to chase what no fleet can hold, and to stop at a bound that a pool's jumps are beyond.

Nobody can know the margin beforehand, and it must be right: so it is controlled. A tick moves it by

    gain * (slow share - aim) / asked share * requests / usual requests

(21 times that at first, 13 times downwards, hardly more after some hours), which holds the long-run
share of slow requests at the aim, whatever the traffic does (Gibbs and Candes 2021, adaptive
conformal inference; the term that follows the last half hour is from Angelopoulos, Candes and
Tibshirani 2023, conformal PID control). Above KNEE its steps grow with its square, up and down, so
that a high margin is soon gone.

The aim is the share asked, but not at every moment. Some requests are slow on any fleet (a prompt
that alone takes longer than the target), more in some hours than in others, and a margin that
answers them buys replicas for nothing: with 1 % asked where 2 % were such requests it grew until
the fleet was three times what the work needed. How many there are shows in ticks with room to
spare: that is `floor`, forgotten in hours without such ticks. Then

    aim = floor + max(asked - mean of floor over a day, a fifth of asked)

holds what is asked in the long run where that can be held, spends replicas where they help, and
elsewhere lets a fifth of what was asked be slow on top of the floor. In the first two hours, when
little is known of it, the aim is what is asked.

Tried on two weeks of one pool (8b and 70b, seed 0); there it takes 0.3 to 0.9 percent fewer hours
at 2 percent of slow requests and 0.8 to 1.7 at 1 percent. Memories of half an hour to two hours,
room of 2.5 or 3 and shares of a tenth to a half made little difference.
"""

from __future__ import annotations

import math

import msgspec

__all__ = ["KNEE", "MARGIN_MAX", "MARGIN_MIN", "SETTLE_S", "Margin", "follow", "has_room"]

MARGIN_MIN, MARGIN_MAX = -0.5, 40.0
"""At the last three times the crest are kept; made spikes of 3 and 5 times the rate took less."""
KNEE = 10.0
"""What is asked in calm hours takes no margin above it."""
GAIN, RECENT_S, RECENT_MAX = 0.0005 / 15.0, 1_800.0, 30.0
GAIN_FIRST_UP, GAIN_FIRST_DOWN, SETTLE_S = 20.0, 12.0, 7_200.0
"""The first margin is a guess: steps are 21 times as long at first, and settle in hours. Downwards
13 times: half an hour's calm took it below what the other half needed."""
AIM = 0.93
"""Of the share asked: the margin is always a little late, which costs some percent of it."""
ROOM = 2.5
"""Spare replicas per square root of work: so many and hardly anybody waits, on 3 or on 30 (Halfin
and Whitt 1981)."""
ROOM_NOISE2, ROOM_BURSTY_MAX = 0.25, 2.0
"""A noise above the first takes more room, up to twice: bursts of a CV of 4 (noise 0.7) still queue
with 2.5. The pool that 2.5 was tried on has 0.2."""
FLOOR_S, FORGET_S, USUAL_S, FIRST_S = 3_600.0, 21_600.0, 86_400.0, 900.0
FLOOR_SHARE = 0.2


def has_room(work: float, noise2: float, replicas: int) -> bool:
    """Whether more replicas would hardly have helped. work: in replicas; noise2: the mean square
    of a tick's surprise, per replica of work.
    """
    bursty = min(max(math.sqrt(noise2 / ROOM_NOISE2), 1.0), ROOM_BURSTY_MAX)
    return work + ROOM * bursty * math.sqrt(work) < replicas


def follow(old: float, new: float, elapsed_s: float, memory_s: float) -> float:
    """Exponentially weighted mean over irregular ticks."""
    return old + (1.0 - math.exp(-elapsed_s / memory_s)) * (new - old)


class Margin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """value: in spreads of the work. recent: mean excess of slow requests of late, in shares asked.

    floor: share of requests that is slow with room to spare; floor_usual: its mean over a day.
    """

    value: float
    recent: float = 0.0
    floor: float = 0.0
    floor_usual: float = 0.0

    def after(
        self,
        slow: float,
        asked: float,
        *,
        crowd: float,
        room: bool,
        may_rise: bool,
        age_s: float,
        elapsed_s: float,
    ) -> Margin:
        """After a tick with the share `slow`; crowd: its requests, in usual ones."""
        floor, weight_s = self.floor, elapsed_s * crowd
        if room:
            floor = follow(floor, slow, weight_s, FLOOR_S)
        else:
            floor *= math.exp(-elapsed_s / FORGET_S)
        memory_s = min(max(age_s, FIRST_S), USUAL_S)
        usual = follow(self.floor_usual, floor, weight_s, memory_s)
        aim = asked
        if age_s > SETTLE_S:
            aim = floor + max(asked - usual, FLOOR_SHARE * asked)
        excess = (slow / AIM - aim) / asked * crowd
        if excess > 0.0 and not may_rise:
            excess = 0.0  # the fleet may not grow: a margin that did would only have to come back
        first = 1.0 + (GAIN_FIRST_UP if excess > 0.0 else GAIN_FIRST_DOWN) * math.exp(
            -age_s / SETTLE_S
        )
        gain = GAIN * max(first, (self.value / KNEE) ** 2)
        return Margin(
            value=min(max(self.value + gain * elapsed_s * excess, MARGIN_MIN), MARGIN_MAX),
            recent=min(follow(self.recent, excess, elapsed_s, RECENT_S), RECENT_MAX),
            floor=floor,
            floor_usual=usual,
        )
