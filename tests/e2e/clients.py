"""Crowds of WebSocket clients that write down what they sent and saw, in threads of their own beside the test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
import uuid

import requests
import websockets

from history import Session, Submit, message, parse_message

RECONNECT_SECONDS = 0.1


class Crowd:
    """Writers on `/effects` and watchers on `/watch`. Every connection is a `Session`; who loses one opens the next.

    Use: `start`, let them run, `quiet` (nobody sends any more, all stay connected), look, `finish`.
    """

    def __init__(self, ws: str | list[str], *, writers: int, watchers: int, pause: float) -> None:
        """`ws`: one edge, or several, which are tried in turn."""
        self._edges = itertools.cycle([ws] if isinstance(ws, str) else ws)
        self.writers = writers
        self.watchers = watchers
        self.pause = pause
        self.sessions: list[Session] = []
        self.watching: list[Session] = []
        self.errors: list[str] = []
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._quiet = self._done = None

    def start(self) -> Crowd:
        self._thread.start()
        return self

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._quiet, self._done = asyncio.Event(), asyncio.Event()
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        tasks = [self._again(self._write, "w", self.sessions) for _ in range(self.writers)]
        tasks += [self._again(self._watch, "v", self.watching) for _ in range(self.watchers)]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if result is not None:
                self.errors.append(repr(result))

    async def _again(self, run, letter: str, into: list[Session]) -> None:
        """Runs one session after another until the crowd is done."""
        while not self._done.is_set():
            path = "/effects" if letter == "w" else "/watch"
            try:
                socket = await websockets.connect(next(self._edges) + path, compression=None, ping_interval=None, open_timeout=20, close_timeout=10, max_queue=None)
            except (OSError, websockets.exceptions.WebSocketException, TimeoutError):
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            session = Session(f"{letter}{next(self._numbers)}")
            into.append(session)
            try:
                await run(socket, session)
                await socket.close()
                # what arrived between the last look and the answer to our close
                async for text in socket:
                    self._took(session, text)
                session.end = "clean" if socket.close_code == 1000 else "lost"
            except websockets.exceptions.ConnectionClosed:
                session.end = "lost"
            session.close_code = socket.close_code

    def _took(self, session: Session, text: str | bytes) -> None:
        if isinstance(text, str) and text.startswith("ack "):
            parsed = parse_message(text[4:])
            if parsed and parsed[0] == session.name:
                session.acks.append(parsed[1])
                return
        elif isinstance(text, str) and text.startswith("effect "):
            session.published.append(text)
            return
        self.errors.append(f"{session.name} received {text[:60]!r}")

    async def _write(self, socket, session: Session) -> None:
        async def read() -> None:
            async for text in socket:
                self._took(session, text)

        reader = asyncio.create_task(read())
        try:
            while not self._quiet.is_set() and not reader.done():
                # counted before it is sent: what a failing send did is unknown
                session.sent += 1
                await socket.send(message(session.name, session.sent - 1))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._quiet.wait(), self.pause)
            done = asyncio.create_task(self._done.wait())
            await asyncio.wait({done, reader}, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if socket.state is not websockets.protocol.State.OPEN:
            raise websockets.exceptions.ConnectionClosedError(None, None)

    async def _watch(self, socket, session: Session) -> None:
        session.sent = 1
        await socket.send(message(session.name, 0))
        done = asyncio.create_task(self._done.wait())
        reader = asyncio.create_task(self._read_all(socket, session))
        try:
            await asyncio.wait({done, reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            done.cancel()
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if socket.state is not websockets.protocol.State.OPEN:
            raise websockets.exceptions.ConnectionClosedError(None, None)

    async def _read_all(self, socket, session: Session) -> None:
        async for text in socket:
            self._took(session, text)

    @property
    def received(self) -> int:
        return sum(len(session.acks) for session in list(self.sessions))

    @property
    def connected(self) -> int:
        return sum(session.end == "open" for session in [*self.sessions, *self.watching])

    @property
    def answered(self) -> bool:
        """Every message of those who are connected was answered."""
        return all(len(session.acks) == session.sent for session in list(self.sessions) if session.end == "open")

    def quiet(self) -> None:
        """Nobody sends any more; all stay connected."""
        self._loop.call_soon_threadsafe(self._quiet.set)

    def finish(self, seconds: float = 60) -> None:
        """Everybody closes cleanly."""
        self._loop.call_soon_threadsafe(self._quiet.set)
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"clients did not end within {seconds} s"


class Submitters:
    """Threads that publish unique payloads over HTTP, each with an idempotency key, and try again with the same key until
    they know what became of it, as a careful service would. After `give_up` seconds the outcome stays unknown (0: one try).
    `http`: one broker, or several, which are asked in turn."""

    def __init__(
        self, http: str | list[str], *, channel: str, threads: int, pause: float, give_up: float = 60, timeout: float = 15
    ) -> None:
        brokers = [http] if isinstance(http, str) else http
        self.urls = [f"{broker}/v1/channels/{channel}/messages" for broker in brokers]
        self.channel = channel
        self.timeout = timeout
        self.pause = pause
        self.give_up = give_up
        self.submits: list[Submit] = []
        self.retried = 0
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]

    def start(self) -> Submitters:
        for thread in self._threads:
            thread.start()
        return self

    def _run(self, thread: int) -> None:
        http = requests.Session()
        for number in itertools.count():
            if self._stop.wait(self.pause):
                return
            payload = f"p{thread}-{number}-{uuid.uuid4().hex}"
            begun = time.monotonic()
            submit = self._submit(http, payload, number)
            submit.begun, submit.ended = begun, time.monotonic()
            self.submits.append(submit)

    def _submit(self, http: requests.Session, payload: str, turn: int) -> Submit:
        end = time.monotonic() + self.give_up
        headers = {"Idempotency-Key": payload, "Content-Type": "text/plain"}
        tries = 0
        while tries == 0 or time.monotonic() < end:
            url = self.urls[(turn + tries) % len(self.urls)]
            tries += 1
            try:
                answer = http.post(url, data=payload, headers=headers, timeout=self.timeout)
            except requests.RequestException:
                answer = None
            if answer is not None and answer.status_code == 200:
                self.retried += tries > 1
                body = answer.json()
                return Submit(payload, "acked", f"{body['partition']}/{body['offset']}")
            if answer is not None and answer.status_code not in {408, 429, 500, 502, 503, 504}:
                self.errors.append(f"{answer.status_code} {answer.text[:200]}")
                return Submit(payload, "refused")
            time.sleep(0.1)
        return Submit(payload, "unknown")

    @property
    def acked(self) -> int:
        return sum(submit.outcome == "acked" for submit in list(self.submits))

    def finish(self, seconds: float = 90) -> list[Submit]:
        self._stop.set()
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a submitter hangs"
        return self.submits
