"""Sends every message back. `trunkline dev --no-handlers`, then `python -m examples.echo [BROKER...]` in sdk/python."""

from __future__ import annotations

import logging
import sys

from trunkline import Context, Handler, Message, Opened, Registration, Subscriber, run

handler = Handler()


@handler.on_opened
async def opened(cx: Context, opened: Opened) -> Registration:
    """Takes the first subprotocol that is offered."""
    return Registration.accept(subprotocol=opened.subprotocols[0] if opened.subprotocols else "")


@handler.on_message
async def message(cx: Context, message: Message) -> None:
    cx.push(message)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    brokers = sys.argv[1:] or ["127.0.0.1:7070"]
    run(Subscriber(brokers, group="echo", apis=["echo"]), handler, joined=lambda broker: print("ready", flush=True))
