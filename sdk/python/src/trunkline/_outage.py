"""What is said of a broker that is away: the first failure, then a line in ten seconds with how many there were, and that it is back.
A reason that is another one is said sooner. No clock of its own, no IO."""

from __future__ import annotations

SAID_EVERY = 10.0
"""Seconds between two lines about the same."""
NEWS_EVERY = 1.0
"""Seconds before another reason is said: two may take turns."""


class Outage:
    """Failures to get a stream to one broker."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._said_at = 0.0
        self._reason = ""
        # since it was last said
        self._attempts = 0

    def handle_failed(self, now: float, reason: str) -> str | None:
        """An attempt failed, or a stream ended: what to say about it."""
        self._attempts += 1
        if self._began is None:
            self._began = now
        else:
            is_news = reason != self._reason
            if now - self._said_at < (NEWS_EVERY if is_news else SAID_EVERY):
                return None
        attempts, self._attempts = self._attempts, 0
        self._said_at, self._reason = now, reason
        if now == self._began:
            return f"{reason}; trying again"
        return f"{reason}; {attempts} attempts since, {now - self._began:.0f} s in all"

    def handle_recovered(self, now: float) -> str | None:
        """There is a stream again: what to say, if anything was said before."""
        if self._began is None:
            return None
        lasted, self._began, self._attempts = now - self._began, None, 0
        return f"back after {lasted:.1f} s"
