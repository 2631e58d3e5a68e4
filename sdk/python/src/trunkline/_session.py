"""One stream to one broker: connect, join, run what the schedule says, send what it wants sent, and all of it again when the stream
ends. Runs of the handler are tasks of their own: one that fails loses nothing but itself.

Everything happens in one event loop, so the schedule needs no lock: whatever changes it calls `_pump`, which starts runs and wakes
the one task that writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc

from trunkline._backoff import Backoff, refuse_delay
from trunkline._brokers import Brokers, Claim, Target
from trunkline._channel import channel
from trunkline._errors import Code, Refused, SettingError, TrunklineError, of_rpc
from trunkline._handler import Handler, Trimmed
from trunkline._ids import Offset
from trunkline._outage import Outage
from trunkline._run import handle
from trunkline._schedule import Bounds, Overflow, Refuse, Schedule, Verdict, Work
from trunkline._settings import Settings
from trunkline.v1 import trunkline_pb2 as wire
from trunkline.v1.trunkline_pb2_grpc import HandlersStub

log = logging.getLogger("trunkline")

COMMITS_MAX = 8
"""Commits without an answer: enough to keep a broker busy, few enough that they grow under load."""
JOIN_TIMEOUT = 10.0
"""A broker that has not answered the join by then is given up."""
RECONNECT = (0.1, 2.0)
"""Short enough that the partitions of a broker that is back are not idle for long."""

Call = grpc.aio.StreamStreamCall[wire.SubscribeRequest, wire.SubscribeResponse]


class Lost(Exception):
    """The stream ended for a reason that may pass."""


class Twice(Exception):
    """Another session holds a stream to this broker."""


class Session:
    """One broker's part of a subscription."""

    def __init__(
        self,
        target: Target,
        brokers: Brokers,
        settings: Settings,
        handler: Handler,
        workers: asyncio.Semaphore,
        joined: Callable[[int], None],
    ) -> None:
        self._target = target
        self._brokers = brokers
        self._settings = settings
        self._handler = handler
        self._workers = workers
        self._joined = joined
        self._schedule = Schedule(Bounds(settings.workers, settings.credit, COMMITS_MAX, settings.extend_every))
        self._runs: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        # set when there may be something to write, or nothing more to wait for
        self._wake = asyncio.Event()
        self._backoff = Backoff(*RECONNECT)
        self._outage = Outage()
        # attempts since the last stream
        self._attempts = 0
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Takes no more events, gives back those not begun, finishes and commits the others, within the grace."""
        self._stopped.set()
        self._wake.set()

    async def run(self) -> None:
        """Until stopped or not needed any more; raises `Refused` if a broker refuses for good."""
        try:
            while (address := self._brokers.address(self._target, self._attempts)) is not None and not self._stopped.is_set():
                self._attempts += 1
                try:
                    await self._connect_and_serve(address)
                    return
                except Twice:
                    return
                except Lost as lost:
                    delay = self._backoff.next()
                    if (said := self._outage.handle_failed(self._loop.time(), str(lost))) is not None:
                        log.warning("no stream to the broker %s for %s: %s", address, self._settings.group, said)
                finally:
                    self._brokers.released(self._target)
                    self._schedule.handle_disconnected()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), delay)
        finally:
            # whatever ends it: another one may be needed in its place
            self._brokers.ended(self._target)
            runs = list(self._runs)
            for run in runs:
                run.cancel()
            if runs:
                log.warning("%s runs were not finished when the time was up; their events come again", len(runs))
                # one that does not let itself be cancelled is left alone
                await asyncio.wait(runs, timeout=1)

    async def _connect_and_serve(self, address: str) -> None:
        try:
            credentials = self._settings.credentials
            opened = channel(credentials.target(address), credentials)
        except SettingError as error:
            raise Lost(str(error)) from None
        try:
            stub = HandlersStub(opened)
            call: Call = stub.Subscribe(metadata=self._settings.credentials.metadata)
            if await self._joined_unless_stopped(call, address):
                self._backoff.reset()
                self._attempts = 0
                await self._serve(call)
        except grpc.aio.AioRpcError as error:
            raise _ended(of_rpc(error)) from None
        except asyncio.InvalidStateError as error:
            # the call ended while something was to be written
            raise Lost(f"the stream was closed: {error}") from None
        finally:
            with contextlib.suppress(Exception):
                await opened.close()

    async def _joined_unless_stopped(self, call: Call, address: str) -> bool:
        joining = asyncio.ensure_future(self._join(call, address))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({joining, stopped}, timeout=JOIN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if joining.done():
                joining.result()
                return True
            if self._stopped.is_set():
                return False
            raise Lost(f"no answer within {JOIN_TIMEOUT:g} s")
        finally:
            for task in (joining, stopped):
                task.cancel()

    async def _join(self, call: Call, address: str) -> None:
        """Joins, unless another session holds a stream to whoever answers."""
        greeting = await _next(call)
        if greeting.WhichOneof("response") != "brokers":
            raise Lost(f"{greeting.WhichOneof('response')} in place of a greeting")
        claim = self._brokers.greeted(self._target, address, greeting.brokers)
        if claim is Claim.TWICE:
            raise Twice
        if claim is Claim.OTHER:
            raise Lost(f"broker {greeting.brokers.broker} answers there")
        await call.write(wire.SubscribeRequest(join=self._settings.join()))
        while (response := await _next(call)).WhichOneof("response") != "joined":
            if response.WhichOneof("response") != "brokers":
                raise Lost(f"{response.WhichOneof('response')} in place of an answer to the join")
            self._brokers.learn(response.brokers)
        settings = self._settings
        log.info("joined the group %s at broker %s as %s", settings.group, response.joined.broker, settings.member)
        if (said := self._outage.handle_recovered(self._loop.time())) is not None:
            log.info("the stream to the broker %s for %s is %s", address, settings.group, said)
        self._joined(response.joined.broker)

    async def _serve(self, call: Call) -> None:
        """Until drained after a stop; raises what ends the stream otherwise."""
        reader = asyncio.ensure_future(self._read(call))
        writer = asyncio.ensure_future(self._write(call))
        self._pump()
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and not writer.cancelled() and writer.exception() is None:
                return  # drained, or out of time
            # what ends the stream is read from it; a write fails of it too, with less to say
            for task in (reader, writer):
                if task.cancelled():
                    raise Lost("the call was cancelled")
                if task.done():
                    task.result()
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, call: Call) -> None:
        while True:
            self._take(await _next(call))
            self._pump()

    async def _write(self, call: Call) -> None:
        """Writes requests one after another: what comes to pass meanwhile goes together into the next commit."""
        give_up: float | None = None
        while True:
            self._wake.clear()
            now = self._loop.time()
            if self._stopped.is_set() and give_up is None:
                give_up = now + self._settings.grace
                self._schedule.handle_stop()
            if give_up is not None and (self._schedule.is_drained() or now >= give_up):
                return
            if (timer := self._schedule.next_timer()) is not None and timer <= now:
                self._schedule.handle_timer(now)
            if self._schedule.has_request(now):
                if (request := self._schedule.next_request(now)) is not None:
                    try:
                        async with asyncio.timeout(None if give_up is None else give_up - now):
                            await call.write(request)
                    except TimeoutError:
                        return
                continue
            times = [at for at in (self._schedule.next_timer(), give_up) if at is not None]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(min(times) - self._loop.time(), 0.001) if times else None)

    def _take(self, response: wire.SubscribeResponse) -> None:
        schedule = self._schedule
        match response.WhichOneof("response"):
            case "brokers":
                self._brokers.learn(response.brokers)
            case "assigned":
                log.debug("partition %s assigned, epoch %s", response.assigned.partition, response.assigned.epoch)
                if response.assigned.HasField("trimmed"):
                    self._tell_trimmed(response.assigned)
                schedule.handle_assigned(response.assigned.partition, response.assigned.epoch)
            case "revoked":
                log.debug("partition %s revoked, epoch %s", response.revoked.partition, response.revoked.epoch)
                schedule.handle_revoked(response.revoked.partition, response.revoked.epoch)
            case "events":
                try:
                    schedule.handle_events(self._loop.time(), response.events)
                except Overflow as overflow:
                    raise Lost(str(overflow)) from None
            case "committed":
                self._committed(response.committed)

    def _tell_trimmed(self, assigned: wire.Assigned) -> None:
        gone = Trimmed(assigned.partition, Offset(getattr(assigned.trimmed, "from")), Offset(assigned.trimmed.through))
        group = self._settings.group
        said = "partition %s: retention has taken offsets %s to %s before the group %s was given the events there"
        log.warning(said, gone.partition, gone.first, gone.last, group)
        try:
            self._handler.trimmed(gone)
        except Exception:
            # what is gone stays gone: events that are there go on
            log.exception("partition %s: the handler failed at being told", gone.partition)

    def _committed(self, result: wire.CommitResult) -> None:
        for command in result.commands:
            code = Code.of_number(command.status.code)
            if code is Code.GONE:
                log.debug("partition %s: a command's connection is gone", result.partition)
            elif code not in (Code.APPLIED, Code.FORWARDED):
                log.warning("partition %s: a command was refused: %s %s", result.partition, code.name, command.status.message)
        given_up = self._schedule.handle_committed(self._loop.time(), result.id, result.status.code)
        if given_up is not None:
            code = Code.of_number(given_up)
            log.error(
                "partition %s: the broker does not take what a handler answered (%s %s); the event will come again",
                result.partition,
                code.name,
                result.status.message,
            )

    def _pump(self) -> None:
        while (work := self._schedule.next_work()) is not None:
            run = asyncio.ensure_future(self._run(work))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        self._wake.set()

    async def _run(self, work: Work) -> None:
        verdict: Verdict = Refuse(refuse_delay(work.event.attempt))
        try:
            async with self._workers:
                verdict = await handle(self._handler, self._settings, work)
        finally:
            self._schedule.handle_finished(work.number, verdict)
            self._pump()


async def _next(call: Call) -> wire.SubscribeResponse:
    response = await call.read()
    if isinstance(response, wire.SubscribeResponse):
        return response
    # the end of the stream; raises if it ended with an error
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), await call.details())
    raise Lost("the broker ended the stream")


def _ended(error: TrunklineError) -> Exception:
    """A broker's own "no" is final; everything else may pass."""
    if isinstance(error, Refused) and error.is_final:
        return error
    return Lost(str(error))
