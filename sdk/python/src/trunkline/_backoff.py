"""Waiting between attempts: exponential with jitter, so that a thousand members of a broker that restarts do not return at the
same moment. Times are seconds."""

from __future__ import annotations

import random


def exponential(first: float, most: float, doublings: int) -> float:
    """`first · 2^doublings`, at most `most`."""
    return min(first * 2.0 ** min(doublings, 31), most)


REFUSE_DELAY = (1.0, 300.0)
"""First and longest delay of an event whose handler failed without naming one."""


def refuse_delay(attempt: int) -> float:
    """The delay before an event is delivered again that failed at this attempt (from 1)."""
    return exponential(*REFUSE_DELAY, max(attempt - 1, 0))


class Backoff:
    """Delays that double from `first` up to `most`."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._attempts = 0

    def next(self) -> float:
        """The next delay: between half and all of the doubled one."""
        delay = exponential(self._first, self._most, self._attempts)
        self._attempts += 1
        return delay * (0.5 + 0.5 * random.random())

    def reset(self) -> None:
        self._attempts = 0
