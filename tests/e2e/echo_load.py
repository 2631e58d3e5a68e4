"""A process of echo clients: `python echo_load.py URL CONNECTIONS MESSAGES SEED`, prints one JSON line.

Every connection sends MESSAGES messages, some ahead of the answers, and checks that each comes back once, in order and
of its kind. Most are small; a few are empty, 64 KiB or 1 MiB.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter

import websockets

AHEAD = 8
"""Messages a client sends before it waits for the first to come back."""
OPENING = 50
"""Handshakes at a time."""


def plan(connection: int, messages: int, seed: int) -> list[str | bytes]:
    """The connection's messages. Those of 1 byte and more are unlike any other of the run."""
    chance = random.Random(f"{seed}/{connection}")
    sizes = [chance.choice((16, 40, 125, 126, 300, 1000)) for _ in range(messages)]
    sizes[chance.randrange(messages)] = 0
    if connection % 5 == 0:
        sizes[chance.randrange(messages)] = 64 << 10
    if connection % 50 == 0:
        sizes[chance.randrange(messages)] = 1 << 20
    planned = []
    for number, size in enumerate(sizes):
        mark = f"{seed}/{connection}/{number} "
        if chance.random() < 0.5:
            planned.append((mark * (size // len(mark) + 1))[:size])
        else:
            planned.append((mark.encode() * (size // len(mark) + 1))[:size])
    return planned


async def client(url: str, planned: list[str | bytes], gate: asyncio.Semaphore, all_open: asyncio.Event, counts: Counter) -> None:
    async with gate:
        socket = await websockets.connect(url, max_size=2 << 20, compression=None, ping_interval=None, open_timeout=60)
    counts["opened"] += 1
    if counts["opened"] == counts["connections"]:
        all_open.set()
    await asyncio.wait_for(all_open.wait(), 120)
    sent = 0
    for number, expected in enumerate(planned):
        while sent < len(planned) and sent < number + AHEAD:
            await socket.send(planned[sent])
            sent += 1
        got = await asyncio.wait_for(socket.recv(), 120)
        if type(got) is not type(expected) or got != expected:
            raise AssertionError(f"message {number}: sent {expected[:40]!r} ({len(expected)}), got {got[:40]!r} ({len(got)})")
        counts["echoed"] += 1
        counts["bytes"] += len(got)
    await socket.close()
    extra = [message async for message in socket]
    if extra:
        raise AssertionError(f"{len(extra)} messages too many: {extra[0][:40]!r}")
    if socket.close_code != 1000:
        raise AssertionError(f"closed with {socket.close_code}")


async def main(url: str, connections: int, messages: int, seed: int) -> dict:
    gate = asyncio.Semaphore(OPENING)
    all_open = asyncio.Event()
    counts = Counter(connections=connections)
    started = time.monotonic()
    clients = [client(url, plan(number, messages, seed), gate, all_open, counts) for number in range(connections)]
    results = await asyncio.gather(*clients, return_exceptions=True)
    errors = [f"{type(error).__name__}: {error}" for error in results if error is not None]
    return dict(counts) | {"errors": len(errors), "first_errors": errors[:5], "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    target, count, each, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(asyncio.run(main(target, count, each, number))))
