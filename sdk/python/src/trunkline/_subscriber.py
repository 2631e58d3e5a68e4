"""A member of a handler group: from brokers' events to the user's handler, and back as commits of outcomes and commands.

A member holds one stream to every broker; each serves the partitions it leads. `_brokers.py` knows where they are, `_session.py` runs
one stream, `_schedule.py` decides what runs when.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import Callable, Iterable
from typing import Any

from trunkline._brokers import Brokers
from trunkline._credentials import Addresses, Authority, credentials
from trunkline._event import EventKind
from trunkline._handler import Handler
from trunkline._session import Session
from trunkline._settings import Settings, StartAt

log = logging.getLogger("trunkline")


class Subscriber:
    """A member of a handler group, ready to run.

    | setting | meaning | default |
    |---|---|---|
    | `addresses` | brokers of the cluster, one or several; the others are learnt | TRUNKLINE_BROKER, else 127.0.0.1:7070 |
    | `token` | proves who this is; `trunkline token new` makes one | TRUNKLINE_TOKEN, else none |
    | `ca` | authority of the brokers' certificates, a PEM file or its content: they speak TLS | TRUNKLINE_CA, else the system's for `https://` |
    | `group` | members of a group share the work | `default` |
    | `member` | unique in the group; a second one of the same name replaces the first | random |
    | `apis`, `kinds` | which events | all |
    | `start` | where a new group begins | latest |
    | `credit` | events on their way or in work, for each broker, 1 to 10,000 | 1,024 |
    | `workers` | events in work at the same time, over all brokers | 256 |
    | `timeout` | seconds, then a handler's run is given up and the event comes again | 300 |
    | `max_attempts` | then an event is parked; 0: never by itself | 0 |
    | `extend_every` | seconds between telling the broker that events are still in work | 10 |
    | `grace` | seconds that a stop waits for runs and commits | 10 |
    """

    def __init__(
        self,
        addresses: Addresses | None = None,
        *,
        token: str | None = None,
        ca: Authority | None = None,
        group: str = "default",
        member: str | None = None,
        apis: Iterable[str] = (),
        kinds: Iterable[EventKind] = (),
        start: StartAt | None = None,
        credit: int = 1024,
        workers: int = 256,
        timeout: float = 300.0,
        max_attempts: int = 0,
        extend_every: float = 10.0,
        grace: float = 10.0,
    ) -> None:
        proof, self._targets = credentials(addresses, token, ca)
        self._settings = Settings(
            credentials=proof,
            group=group,
            member=member if member is not None else f"member-{secrets.token_hex(8)}",
            apis=tuple(apis),
            kinds=tuple(kinds),
            start=start or StartAt.latest(),
            credit=credit,
            max_attempts=max_attempts,
            workers=workers,
            timeout=timeout,
            extend_every=extend_every,
            grace=grace,
        )
        self._settings.check()

    @property
    def member(self) -> str:
        """This member's name."""
        return self._settings.member

    async def run(self, handler: Handler, *, joined: Callable[[int], None] = lambda broker: None) -> None:
        """Runs until cancelled; then takes no more events, gives back those not begun, finishes and commits the others, within the
        grace. A second cancellation ends it at once. The same drain if a broker refuses the subscription for good, which is raised
        then: a broker that is away is no reason, it is tried again for ever.

        `joined` is called with the number of each broker that has taken the member in.
        """
        stop = asyncio.Event()
        running = asyncio.ensure_future(self.run_until(handler, stop, joined=joined))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            log.info("stopping: what runs is finished, within %g s, and the rest is given back", self._settings.grace)
            stop.set()
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                running.cancel()
                with contextlib.suppress(BaseException):
                    await running
                raise
            raise

    async def run_until(self, handler: Handler, stop: asyncio.Event, *, joined: Callable[[int], None] = lambda broker: None) -> None:
        """Like `run`, until `stop` is set."""
        changed = asyncio.Event()
        brokers = Brokers(self._targets, changed.set)
        workers = asyncio.Semaphore(self._settings.workers)
        sessions: dict[asyncio.Task[None], Session] = {}
        missing = brokers.given()
        failed: BaseException | None = None
        stopping = asyncio.ensure_future(stop.wait())
        told = asyncio.ensure_future(changed.wait())
        try:
            while True:
                if not stop.is_set():
                    for target in missing:
                        session = Session(target, brokers, self._settings, handler, workers, joined)
                        sessions[asyncio.ensure_future(session.run())] = session
                elif not sessions:
                    break
                waiting: set[asyncio.Task[Any]] = {*sessions}
                if not stop.is_set():
                    waiting |= {stopping, told}
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in sessions if task in done]:
                    del sessions[task]
                    if (error := task.exception()) is not None:
                        log.error("the subscription ends: %s", error)
                        failed = failed or error
                        stop.set()
                if stop.is_set():
                    for session in sessions.values():
                        session.stop()
                changed.clear()
                missing = brokers.missing()
                if told.done():
                    told = asyncio.ensure_future(changed.wait())
        finally:
            for each in (*sessions, stopping, told):
                each.cancel()
            await asyncio.gather(*sessions, stopping, told, return_exceptions=True)
        if failed is not None:
            raise failed


def run(subscriber: Subscriber, handler: Handler, *, joined: Callable[[int], None] = lambda broker: None) -> None:
    """Runs a subscriber as a whole program: until SIGTERM or Ctrl-C, after which it drains."""

    async def main() -> None:
        cancel_on_sigterm()
        await subscriber.run(handler, joined=joined)

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main())


def cancel_on_sigterm() -> None:
    """SIGTERM cancels this task, as SIGINT does by itself."""
    task = asyncio.current_task()
    if task is not None and hasattr(signal, "SIGTERM"):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
