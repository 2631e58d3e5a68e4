"""`trunkline-functions run`: the functions of an API, run in this process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

import trunkline
from trunkline._credentials import DEFAULT_ADDRESS
from trunkline._errors import SettingError, TrunklineError
from trunkline._settings import StartAt
from trunkline._subscriber import Subscriber, cancel_on_sigterm
from trunkline.functions import environment, folders
from trunkline.functions.bridge import CallSettings, Functions, OnFailure
from trunkline.functions.instances import FunctionFile, Instances, LoadError, own_frames
from trunkline.functions.reload import Sources, run_until_changed, start_again
from trunkline.functions.scf import Front

USAGE = 64
"""Exit code for what was asked for wrongly, as with the other programs of Trunkline."""

EVENTS_MAX = 4096
"""Events in the hands of this process at once, for each broker: those that wait for an instance do not keep those of other functions
from coming."""

LOAD_TIMEOUT = 60.0
"""Seconds that loading a function may take when the program starts."""
TIME_MAX = 900.0
"""Longest of the times that can be set."""

log = logging.getLogger("trunkline.functions")

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """`250ms`, `10s`, `5m`, `1h` in seconds."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 250ms, 10s, 5m")
    return float(found[1]) * _UNITS[found[2]]


def _positive(text: str) -> float:
    if not 0 < (seconds := duration(text)) <= TIME_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not within 15m")
    return seconds


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {least} to {most}")
        return int(text)

    return parse


class Parser(argparse.ArgumentParser):
    """With this project's exit code."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    top = Parser(prog="trunkline-functions", description="Functions of an API, run in this process.")
    top.add_argument("--version", action="version", version=trunkline.__version__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    summary = "run main_handler(event, context) of Python files"
    add = verbs.add_parser("run", help=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter).add_argument
    add("--broker", action="append", metavar="ADDR[,ADDR]", help=f"brokers (TRUNKLINE_BROKER, else {DEFAULT_ADDRESS})", default=argparse.SUPPRESS)
    add("--token", metavar="TOKEN", help="shown to brokers that ask for one; safer in TRUNKLINE_TOKEN or a file", default=argparse.SUPPRESS)
    add("--token-file", type=environment.token, metavar="FILE", help="a file with the token", default=argparse.SUPPRESS)
    add("--ca", metavar="FILE", help="authority (PEM) of the brokers' certificates: they speak TLS (TRUNKLINE_CA)", default=argparse.SUPPRESS)
    add("--api", required=True, metavar="NAME", help="the API whose events these functions get")
    add("--group", metavar="NAME", help="its handler group (default: the API's name)", default=argparse.SUPPRESS)
    add("--member", metavar="NAME", help="this process's name in the group (default: random)", default=argparse.SUPPRESS)
    add("--registration", metavar="FILE", help="decides who gets in; without it everybody does", default=argparse.SUPPRESS)
    add("--transmission", metavar="FILE", required=True, help="gets every message", default=argparse.SUPPRESS)
    add("--cleanup", metavar="FILE", help="is told of every close", default=argparse.SUPPRESS)
    add("--timeout", type=_positive, metavar="TIME", default="15s", help="of one call")
    add("--registration-timeout", type=_positive, metavar="TIME", default="15s", help="as the API has it: then nobody waits any more")
    add("--retries", type=_whole(0, 10), metavar="N", default=2, help="more attempts at once")
    add("--backoff", type=_positive, metavar="TIME", default="200ms", help="before the first of them; doubles")
    add("--on-failure", choices=[each.value for each in OnFailure], default="retry", help="in the end")
    add("--concurrency", type=_whole(1, 1024), metavar="N", default=64, help="calls of one function at the same time")
    add("--integration-response", action="store_true", help="push what the transmission function answers")
    add("--stage", default="release", help="requestContext.stage")
    add("--path", metavar="PATH", help="requestContext.path (default: as asked for)", default=argparse.SUPPRESS)
    add("--forward-request", action="store_true", help="add queryString, pathParameters and headers to requestContext")
    add("--env", type=environment.assignment, action="append", metavar="KEY=VALUE", help="set for the functions", default=argparse.SUPPRESS)
    add("--env-file", type=environment.assignments, metavar="FILE", help="lines KEY=VALUE, set for the functions", default=argparse.SUPPRESS)
    add("--grace", type=_positive, metavar="TIME", help="how long a stop waits for calls (default: as --timeout)", default=argparse.SUPPRESS)
    add("--reload", action="store_true", help="start again when a source changes, for development")
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info", help="of what goes to standard error")
    return top


def files(options: argparse.Namespace) -> dict[str, FunctionFile]:
    """The functions that were asked for. `LoadError` for one that is not there."""
    given = ((slot, getattr(options, slot, None)) for slot in ("registration", "transmission", "cleanup"))
    return {slot: FunctionFile.parse(slot, path) for slot, path in given if path is not None}


def subscriber(options: argparse.Namespace) -> Subscriber:
    """The member of the handler group."""
    brokers = getattr(options, "broker", None)
    return Subscriber(
        ",".join(brokers) if brokers is not None else None,
        token=getattr(options, "token_file", getattr(options, "token", None)),
        ca=getattr(options, "ca", None),
        group=getattr(options, "group", options.api),
        member=getattr(options, "member", None),
        apis=[options.api],
        # a client may be faster than the group's first member
        start=StartAt.time(time.time() - options.registration_timeout),
        credit=EVENTS_MAX,
        workers=EVENTS_MAX,
        # calls have limits of their own; this one is for those that wait for an instance for ever
        timeout=min((options.timeout + 30) * (options.retries + 2), 24 * 3600),
        grace=getattr(options, "grace", options.timeout),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; its exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # what functions print is read while they run
        sys.stdout.reconfigure(line_buffering=True)
    # two changes within a second may look the same to what decides whether bytecode is out of date
    sys.dont_write_bytecode = sys.dont_write_bytecode or options.reload
    os.environ.update([*getattr(options, "env_file", ()), *getattr(options, "env", ())])
    try:
        member = subscriber(options)
        functions = files(options)
        sources = Sources(file.path.parent for file in functions.values()) if options.reload else None
    except (SettingError, LoadError) as error:
        return _said(error, USAGE)
    try:
        changed = asyncio.run(serve(member, call_settings(options), functions, options.concurrency, sources))
        if changed is not None:
            log.info("%s has changed: starting again", changed)
    except LoadError as error:
        _said(error, USAGE)
        if sources is None:
            return USAGE
        log.info("waiting for a change")
        with contextlib.suppress(KeyboardInterrupt):
            changed = asyncio.run(sources.until_changed())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 0
    except TrunklineError as error:
        return _said(error, 1)
    if changed is not None:
        start_again(sys.argv[1:] if argv is None else argv)
    return 0


def _said(error: Exception, code: int) -> int:
    print(f"trunkline-functions: {error}", file=sys.stderr)
    return code


def call_settings(options: argparse.Namespace) -> CallSettings:
    """How functions are called."""
    return CallSettings(
        timeout=options.timeout,
        registration_timeout=options.registration_timeout,
        retries=options.retries,
        backoff=options.backoff,
        on_failure=OnFailure(options.on_failure),
        integration_response=options.integration_response,
        front=Front(getattr(options, "path", None), options.stage, options.forward_request),
    )


async def serve(
    member: Subscriber, settings: CallSettings, functions: dict[str, FunctionFile], concurrency: int, sources: Sources | None
) -> Path | None:
    """Until SIGTERM or SIGINT, which cancel, or a source that changed. `LoadError` if a function cannot be loaded."""
    cancel_on_sigterm()
    folders.search(file.path.parent for file in functions.values())
    instances = {slot: Instances(file, concurrency) for slot, file in functions.items()}
    for each in instances.values():
        try:
            await each.warm(LOAD_TIMEOUT)
        except LoadError:
            raise
        except Exception as error:
            at_fault = None if isinstance(error, SyntaxError) else own_frames(error.__traceback__)
            log.error("%s cannot be loaded", each.file.path, exc_info=(type(error), error, at_fault))
            raise LoadError(f"{each.file.path} cannot be loaded: {type(error).__name__}: {error}{_hint(error)}") from None
    handler = Functions(
        settings,
        transmission=instances["transmission"],
        registration=instances.get("registration"),
        cleanup=instances.get("cleanup"),
    )
    for slot, file in functions.items():
        log.info("%s: %s of %s", slot, file.name, file.path)
    told = False

    def ready(broker: int) -> None:
        nonlocal told
        if not told:
            told = True
            print("ready", flush=True)

    def run() -> Coroutine[Any, Any, None]:
        return member.run(handler, joined=ready)

    if sources is not None:
        return await run_until_changed(run, sources)
    await run()
    return None


def _hint(error: Exception) -> str:
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        return ". A function's file is no part of a package: `import helper` finds helper.py beside it"
    if isinstance(error, ModuleNotFoundError):
        return f". It is to be installed for {sys.executable}, or to be beside the function"
    return ""
