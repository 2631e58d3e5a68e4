"""Functions as files, and the threads that run them.

An **instance** is a thread with a copy of the function's module of its own, loaded by that thread, which runs one event at a time: what
a function keeps in globals (a database connection, a session) is never used by two events at once, as functions of clouds expect.

Bounds: at most `instances_max` work at the same time, and more wait. One that does not answer in time is **stuck**: no thread can be
ended from outside (a coroutine can), so it is left behind, and another takes its place, until as many are stuck as may work; then places become free only
as stuck ones come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.abc
import importlib.util
import inspect
import itertools
import logging
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

log = logging.getLogger("trunkline.functions")

MainHandler: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], object]

ENTRY = "main_handler"
_numbers = itertools.count(1)
_loading = threading.Lock()


class LoadError(Exception):
    """A file is not there, or has no such function."""


@dataclass(frozen=True, slots=True)
class FunctionFile:
    """A function: `name` in a Python file."""

    slot: str
    """registration, transmission or cleanup."""
    path: Path
    name: str = ENTRY

    @classmethod
    def parse(cls, slot: str, text: str) -> FunctionFile:
        """`FILE` or `FILE:NAME`. `LoadError` if there is no such file."""
        path, colon, name = text.rpartition(":")
        if not colon or not name.isidentifier() or Path(text).exists():
            path, name = text, ENTRY
        if not Path(path).is_file():
            raise LoadError(f"there is no file {path!r} (for {slot})")
        return cls(slot, Path(path).resolve(), name)

    def load(self) -> MainHandler:
        """A new copy of the module's function. `folders.search` is to have seen its folder."""
        name = f"trunkline_function_{self.slot}_{next(_numbers)}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or not isinstance(spec.loader, importlib.abc.InspectLoader):
            raise LoadError(f"{self.path} is no Python file")
        module: ModuleType = importlib.util.module_from_spec(spec)
        # where a class looks for the module it was defined in
        sys.modules[name] = module
        try:
            with _loading:
                # CPython 3.11 counts the depth of what it parses over all threads
                code = spec.loader.get_code(name)
            if code is None:
                raise LoadError(f"{self.path} is no Python source")
            exec(code, module.__dict__)
            function = getattr(module, self.name, None)
            if not callable(function):
                raise LoadError(f"{self.path} has no function {self.name}(event, context){_other(self.path, module)}")
            _check_parameters(self, function)
        except BaseException:
            del sys.modules[name]
            raise
        found: MainHandler = function
        return found


def _other(path: Path, module: ModuleType) -> str:
    """The one function that is meant perhaps."""
    defined = [name for name, each in vars(module).items() if inspect.isfunction(each) and each.__module__ == module.__name__]
    return f"; {path.name}:{defined[0]} would name {defined[0]}" if len(defined) == 1 else ""


def _check_parameters(file: FunctionFile, function: Callable[..., object]) -> None:
    try:
        inspect.signature(function).bind({}, {})
    except TypeError as error:
        raise LoadError(f"{file.name} of {file.path} does not take (event, context): {error}") from None
    except ValueError:
        pass  # one that is not written in Python does not tell


class Ended(Exception):
    """The function asked the interpreter to exit, or was interrupted."""


Job: TypeAlias = tuple[Callable[[MainHandler], object], float, "Future[object]"]


class Instance:
    """One thread with its own copy of the function."""

    def __init__(self, file: FunctionFile, number: int) -> None:
        self._file = file
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # a daemon: one that is stuck does not keep the process from ending
        self._thread = threading.Thread(target=self._work, name=f"{file.slot}-{number}", daemon=True)
        self._thread.start()

    def submit(self, use: Callable[[MainHandler], object], timeout: float) -> Future[object]:
        """Uses the function, which is loaded before the first time; one use at a time. A coroutine is cancelled after the timeout."""
        future: Future[object] = Future()
        self._jobs.put((use, timeout, future))
        return future

    def end(self) -> None:
        """After what it is at."""
        self._jobs.put(None)

    def _work(self) -> None:
        # one event loop for all calls of an `async def main_handler`: what it keeps in globals belongs to a loop
        runner = asyncio.Runner()
        try:
            self._work_with(runner)
        finally:
            runner.close()

    def _work_with(self, runner: asyncio.Runner) -> None:
        function: MainHandler | None = None
        while (job := self._jobs.get()) is not None:
            use, timeout, future = job
            try:
                function = function or self._file.load()
                answer = use(function)
                # later than whoever waits for it gives up, who thus knows why
                future.set_result(runner.run(asyncio.wait_for(answer, timeout + 1)) if inspect.iscoroutine(answer) else answer)
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:
                # sys.exit in a function ends that call, not the others'
                future.set_exception(Ended(f"the function ended with {error!r}").with_traceback(error.__traceback__))


def own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The frames of the function, without those that led to it."""
    last, at = traceback, traceback
    while at is not None:
        if at.tb_frame.f_code.co_filename == __file__:
            last = at.tb_next
        at = at.tb_next
    return last


def _told(future: Future[object]) -> asyncio.Future[None]:
    """Is done once a thread has come to an end with `future`."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not told.cancelled():
            told.set_result(None)

    def tell_from_thread(_: Future[object]) -> None:
        # the loop may have ended before the thread
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell)

    future.add_done_callback(tell_from_thread)
    return told


class TimedOut(Exception):
    """The function has not answered in time."""


class Instances:
    """The instances of one function."""

    def __init__(self, file: FunctionFile, instances_max: int) -> None:
        self.file = file
        self._places = asyncio.Semaphore(instances_max)
        self._stuck_max = instances_max
        self._stuck = 0
        self._idle: list[Instance] = []
        self._started = 0

    @property
    def stuck(self) -> int:
        """Instances that have been left behind and are still at it."""
        return self._stuck

    async def warm(self, timeout: float) -> None:
        """Loads one instance, which says whether that can be done. Raises what loading raises, or `TimedOut`."""
        await self._use(lambda function: None, timeout)

    async def call(self, event: dict[str, Any], context: dict[str, Any], timeout: float) -> object:
        """Runs the function. Raises what it raises, or `TimedOut`."""
        return await self._use(lambda function: function(event, context), timeout)

    async def _use(self, use: Callable[[MainHandler], object], timeout: float) -> object:
        await self._places.acquire()
        instance = self._idle.pop() if self._idle else self._new()
        future = instance.submit(use, timeout)
        ended = _told(future)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await ended
        except (TimeoutError, asyncio.CancelledError):
            if not future.done():
                self._leave_behind(instance, future)
                if limit.expired():
                    raise TimedOut(f"no answer within {timeout:g} s") from None
                raise
            if not limit.expired():
                self._free(instance, future)
                raise
            # it ended in the very moment it was given up
        self._free(instance, future)
        return future.result()

    def _new(self) -> Instance:
        self._started += 1
        return Instance(self.file, self._started)

    def _free(self, instance: Instance, future: Future[object]) -> None:
        if isinstance(future.exception(), Ended):
            instance.end()
        else:
            # the last one used comes first: few are kept warm
            self._idle.append(instance)
        self._places.release()

    def _leave_behind(self, instance: Instance, future: Future[object]) -> None:
        self._stuck += 1
        gives_way = self._stuck <= self._stuck_max
        if gives_way:
            log.warning("%s: a call hangs; its thread is left behind, one of %s now", self.file.slot, self._stuck)
            self._places.release()
        else:
            log.error("%s: %s calls hang, as many as may run: no other takes the place of this one", self.file.slot, self._stuck)
        instance.end()
        _told(future).add_done_callback(lambda _: self._came_back(gives_way))

    def _came_back(self, gave_way: bool) -> None:
        self._stuck -= 1
        if not gave_way:
            self._places.release()
