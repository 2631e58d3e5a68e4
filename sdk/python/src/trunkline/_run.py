"""One run of the handler: from an event to a verdict."""

from __future__ import annotations

import asyncio
import logging

from trunkline._backoff import refuse_delay
from trunkline._context import Context, Origin
from trunkline._errors import CommandError
from trunkline._event import Closed, Opened, received
from trunkline._handler import Handler, HandlerError, Registration, decide
from trunkline._ids import ConnectionId, Offset
from trunkline._schedule import Acknowledge, Park, Refuse, Verdict, Work
from trunkline._settings import Settings
from trunkline.v1 import trunkline_pb2 as wire

log = logging.getLogger("trunkline")


async def handle(handler: Handler, settings: Settings, work: Work) -> Verdict:
    """Runs the handler on one event. Only a cancellation comes out of it."""
    event = work.event
    if len(event.connection) != 16 or event.WhichOneof("event") is None:
        return Park("an event this version of the SDK does not know")
    origin = Origin(
        group=settings.group,
        partition=work.partition,
        offset=Offset(event.offset),
        time=event.time,
        attempt=event.attempt,
        connection=ConnectionId(event.connection),
        api=event.api,
    )
    cx = Context(origin)
    timeout = asyncio.timeout(settings.timeout)
    try:
        async with timeout:
            await _call(handler, cx, event)
        return Acknowledge(cx.finish())
    except HandlerError as error:
        log.warning("%s: %s", _named(origin), error, exc_info=error.__cause__)
        if error.parked is not None:
            return Park(error.parked)
        return Refuse(refuse_delay(event.attempt) if error.delay is None else error.delay)
    except CommandError as error:
        log.error("%s: a malformed command: %s", _named(origin), error)
    except Exception:
        why = f"no answer within {settings.timeout:g} s" if timeout.expired() else "the handler failed"
        log.exception("%s: %s", _named(origin), why)
    return Refuse(refuse_delay(event.attempt))


def _named(origin: Origin) -> str:
    return f"event {origin.partition}/{origin.offset} of connection {origin.connection}, attempt {origin.attempt}"


async def _call(handler: Handler, cx: Context, event: wire.Event) -> None:
    match event.WhichOneof("event"):
        case "opened":
            registration = await handler.opened(cx, Opened.of(event.opened))
            if warning := decide(cx, event.opened.handler_group, registration or Registration.accept()):
                log.warning("connection %s: %s", cx.connection, warning)
        case "message":
            await handler.message(cx, received(event.message))
        case _:
            await handler.closed(cx, Closed.of(event.closed))
