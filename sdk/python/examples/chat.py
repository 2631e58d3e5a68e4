"""A chat room: the first message is a nickname, then everyone in the room sees what one says.

`trunkline dev --no-handlers`, then `python -m examples.chat [BROKER...]` in sdk/python.
"""

from __future__ import annotations

import logging
import sys

from trunkline import Client, Closed, Context, Handler, Message, Subscriber, TrunklineError, run

ROOM = "chat"
NICKNAME_MAX = 32
LINE_MAX = 2000
KNOWN_MAX = 100_000
"""Nicknames remembered here; those forgotten are asked for again."""


class Chat(Handler):
    """The nickname is an attribute of the connection, so it survives this process."""

    def __init__(self, client: Client) -> None:
        self.client = client
        # nicknames seen by this process, and the event that set each
        self.known: dict[str, tuple[str, int]] = {}

    async def message(self, cx: Context, message: Message) -> None:
        if isinstance(message, bytes):
            cx.push("* text only, please")
            return
        text = message.strip()
        nickname = await self.nickname(cx)
        if nickname is None:
            self.introduce(cx, text)
        elif len(text) > LINE_MAX:
            cx.push(f"* at most {LINE_MAX} characters, please")
        else:
            cx.publish(ROOM, f"{nickname}: {text}")

    async def closed(self, cx: Context, closed: Closed) -> None:
        if known := self.known.pop(str(cx.connection), None):
            cx.publish(ROOM, f"* {known[0]} left")

    async def nickname(self, cx: Context) -> str | None:
        """The one the connection has had before this event."""
        if known := self.known.get(str(cx.connection)):
            nickname, offset = known
            # if this very event set it, it is delivered again
            return None if offset == cx.offset else nickname
        try:
            connection = await self.client.connection(cx.connection)
        except TrunklineError as error:
            if error.is_gone:
                return None
            raise
        stored = connection.attributes.get("nickname")
        if stored is not None:
            self.remember(cx, stored, 0)
        return stored

    def introduce(self, cx: Context, nickname: str) -> None:
        if not 1 <= len(nickname) <= NICKNAME_MAX or not nickname.isprintable() or set(":*") & set(nickname):
            cx.push(f"* a nickname has 1 to {NICKNAME_MAX} characters, without : and *")
            return
        self.remember(cx, nickname, cx.offset)
        cx.set_attribute("nickname", nickname)
        cx.join(ROOM)
        cx.publish(ROOM, f"* {nickname} joined")

    def remember(self, cx: Context, nickname: str, offset: int) -> None:
        if len(self.known) >= KNOWN_MAX:
            self.known.clear()
        self.known[str(cx.connection)] = (nickname, offset)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    brokers = sys.argv[1:] or ["127.0.0.1:7070"]
    subscriber = Subscriber(brokers, group="chat", apis=["chat"])
    run(subscriber, Chat(Client(brokers)), joined=lambda broker: print("ready", flush=True))
