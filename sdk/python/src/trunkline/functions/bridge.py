"""The handler that calls functions: which call an event makes, when it is made again, and what becomes of the event."""

from __future__ import annotations

import asyncio
import copy
import enum
import logging
import random
import time
from dataclasses import dataclass, field
from typing import Any

from trunkline._backoff import exponential
from trunkline._context import Context
from trunkline._event import Closed, Message, Opened
from trunkline._handler import Handler, HandlerError, Registration
from trunkline._ids import ConnectionId
from trunkline.functions import scf
from trunkline.functions.instances import Instances, TimedOut, own_frames

log = logging.getLogger("trunkline.functions")

BACKOFF_MAX = 30.0
"""Longest wait between two attempts at a call."""


LATE = 30.0
"""A registration that is so much older than its timeout is not asked for any more: its client has had its answer. Generous, as clocks
differ."""


UNANSWERED_MAX = 10_000
"""Most connections remembered that were turned away without an answer; with more the oldest are not cleaned up."""


class OnFailure(enum.Enum):
    """What becomes of a message or a close whose function goes on failing."""

    RETRY = "retry"
    """The event comes again, for ever; later ones of its connection wait."""
    CLOSE = "close"
    """The connection is closed with 1011. A failed cleanup becomes a dead letter."""
    DEAD_LETTER = "dead_letter"
    """The event is set aside, and the connection's next one goes on."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How functions are called."""

    timeout: float = 15.0
    """Seconds of one call."""
    registration_timeout: float = 15.0
    """Seconds after which nobody waits for a registration any more, all attempts together."""
    retries: int = 2
    """More attempts at once."""
    backoff: float = 0.2
    """Seconds before the first of them; doubles, with jitter. The delay of `OnFailure.RETRY` too."""
    on_failure: OnFailure = OnFailure.RETRY
    integration_response: bool = False
    front: scf.Front = field(default_factory=scf.Front)

    def delay(self, failures: int) -> float:
        """Before the next attempt after so many failures, from 1."""
        return min(exponential(self.backoff, BACKOFF_MAX, failures - 1) * (0.5 + random.random()), BACKOFF_MAX)


class CallFailed(Exception):
    """A function gave no answer that counts, however often it was asked."""

    def __init__(self, why: str, *, status: int, may_have_run: bool) -> None:
        super().__init__(why)
        self.status = status
        self.may_have_run = may_have_run
        """It was called and did not come back: it may run on, to its end."""


class Functions(Handler):
    """The functions of one API as its handler."""

    def __init__(
        self,
        settings: CallSettings,
        *,
        transmission: Instances,
        registration: Instances | None = None,
        cleanup: Instances | None = None,
    ) -> None:
        self._settings = settings
        self._registration = registration
        self._transmission = transmission
        self._cleanup = cleanup
        self._unanswered: dict[ConnectionId, None] = {}

    async def opened(self, cx: Context, opened: Opened) -> Registration:
        if self._registration is None:
            return Registration.accept()
        # elsewhere the client is in already, and nobody waits
        patience = self._settings.registration_timeout if opened.handler_group == cx.group else None
        if patience is not None and time.time() - cx.time > patience + LATE:
            return scf.refusal(504, "the registration came too late")
        event = scf.registration_event(cx, opened, self._settings.front)
        try:
            async with asyncio.timeout(patience):
                return scf.decision(await self._call(cx, self._registration, event), opened)
        except (CallFailed, TimeoutError, scf.BadAnswer) as error:
            if patience is None:
                self._failed(cx, error, is_open=True)
                return Registration.accept()
            status = error.status if isinstance(error, CallFailed) else 504 if isinstance(error, TimeoutError) else 502
            if not isinstance(error, CallFailed) or error.may_have_run:
                self._remember(cx.connection)
            log.error("registration of %s is refused with %s: %s", cx.connection, status, error or "it takes too long")
            return scf.refusal(status, "the registration function failed")

    async def message(self, cx: Context, message: Message) -> None:
        try:
            answer = await self._call(cx, self._transmission, scf.transmission_event(cx, message))
            pushed = scf.integration_response(answer) if self._settings.integration_response else None
        except (CallFailed, scf.BadAnswer) as error:
            self._failed(cx, error, is_open=True)
            return
        if pushed is not None:
            cx.push(pushed)

    async def closed(self, cx: Context, closed: Closed) -> None:
        # who was turned away was never there, unless its function may think otherwise
        if self._cleanup is None or not (scf.wants_cleanup(closed) or cx.connection in self._unanswered):
            return
        try:
            await self._call(cx, self._cleanup, scf.cleanup_event(cx, closed))
        except CallFailed as error:
            self._failed(cx, error, is_open=False)
        else:
            self._unanswered.pop(cx.connection, None)

    def _remember(self, connection: ConnectionId) -> None:
        """A registration that was called and not heard: the function may have stored the connection."""
        self._unanswered[connection] = None
        if len(self._unanswered) > UNANSWERED_MAX:
            del self._unanswered[next(iter(self._unanswered))]

    def _failed(self, cx: Context, error: Exception, *, is_open: bool) -> None:
        """The end of an event whose call failed for good; raises unless that is to close the connection."""
        if self._settings.on_failure is OnFailure.RETRY:
            # goes on where the attempts at once have left off
            raise HandlerError.retry_after(self._settings.delay(cx.attempt + self._settings.retries)) from None
        if self._settings.on_failure is OnFailure.DEAD_LETTER or not is_open:
            raise HandlerError.park(str(error)) from None
        log.error("connection %s is closed: %s", cx.connection, error)
        cx.close(1011, "a function failed")

    async def _call(self, cx: Context, instances: Instances, event: dict[str, Any]) -> object:
        settings, slot, may_have_run = self._settings, instances.file.slot, False
        for attempt in range(1, settings.retries + 2):
            try:
                # each attempt has its own: functions may change what they are given
                return await instances.call(copy.deepcopy(event), scf.function_context(cx, slot, settings.timeout), settings.timeout)
            except TimedOut as error:
                may_have_run = True
                failed = CallFailed(f"{slot}: {error}", status=504, may_have_run=True)
                log.error("%s of connection %s, attempt %s.%s: %s", slot, cx.connection, cx.attempt, attempt, error)
            except Exception as error:
                failed = CallFailed(f"{slot}: {type(error).__name__}: {error}", status=502, may_have_run=may_have_run)
                log.error(
                    "%s of connection %s failed, attempt %s.%s",
                    slot,
                    cx.connection,
                    cx.attempt,
                    attempt,
                    exc_info=(type(error), error, own_frames(error.__traceback__)),
                )
            if attempt <= settings.retries:
                await asyncio.sleep(settings.delay(attempt))
        raise failed
