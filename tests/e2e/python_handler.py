"""The handler of the system tests, written with sdk/python: the twin of tests/src/bin/e2e_handler.rs, with its command line.

It writes every event down before it answers, so that a test can tell what reached the group even when this process was killed.
"""

from __future__ import annotations

import argparse
import json
import os

import trunkline
from trunkline import Closed, Context, Handler, Message, Opened, Registration, StartAt, Subscriber

EFFECTS = "effects"


class Probe(Handler):
    def __init__(self, behaviour: str, journal: str) -> None:
        self.behaviour = behaviour
        self.journal = os.open(journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def write(self, cx: Context, kind: str, text: str) -> None:
        row = {
            "group": cx.group,
            "partition": cx.partition,
            "offset": str(cx.offset),
            "attempt": cx.attempt,
            "kind": kind,
            "connection": str(cx.connection),
            "text": text,
        }
        # one write: what was written survives the process
        os.write(self.journal, (json.dumps(row) + "\n").encode())

    async def opened(self, cx: Context, opened: Opened) -> Registration:
        self.write(cx, "connection_opened", "")
        if self.behaviour != "gate":
            return Registration.accept()
        if status := opened.query_parameter("reject"):
            return Registration.reject(int(status), "not today")
        key, colon, value = (opened.query_parameter("attribute") or "").partition(":")
        channel = opened.query_parameter("channel")
        return Registration.accept(
            subprotocol=opened.query_parameter("protocol") or "",
            attributes={key: value} if colon else {},
            channels=[channel] if channel else [],
        )

    async def message(self, cx: Context, message: Message) -> None:
        text = message if isinstance(message, str) else ""
        self.write(cx, "message_received", text)
        if self.behaviour == "effects":
            cx.push(f"ack {text}")
            cx.publish(EFFECTS, f"effect {text}")
        else:
            cx.push(message)

    async def closed(self, cx: Context, closed: Closed) -> None:
        self.write(cx, "connection_closed", str(closed.code))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=["echo", "effects", "gate"])
    for flag in ("--broker", "--group", "--api", "--member", "--journal"):
        parser.add_argument(flag, required=True)
    options = parser.parse_args()
    subscriber = Subscriber(
        options.broker.split(","), group=options.group, apis=[options.api], member=options.member, start=StartAt.earliest()
    )
    trunkline.run(subscriber, Probe(options.behaviour, options.journal), joined=lambda broker: print("ready", flush=True))


if __name__ == "__main__":
    main()
