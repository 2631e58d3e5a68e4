"""A flood of handshakes: `python flood.py HOST PORT PATH RATE SECONDS [SOURCE]` opens RATE connections a second, asks for an upgrade on
each, reads the status and closes. Prints one JSON line: how often each status came (0: none), and in how many seconds."""

from __future__ import annotations

import collections
import contextlib
import json
import selectors
import socket
import sys
import time

import wire

TICK_SECONDS = 0.005
ANSWER_SECONDS = 10
"""So long after the last was opened the answers are awaited."""


def main() -> None:
    host, port, path, rate, seconds, *source = sys.argv[1:]
    address, total = (host, int(port)), int(float(rate) * float(seconds))
    request = wire.handshake(address, path)
    waiting = selectors.DefaultSelector()
    statuses: collections.Counter[int] = collections.Counter()
    begun = time.monotonic()
    opened = 0
    opening_took = 0.0
    while opened < total or waiting.get_map():
        due = min(total, int((time.monotonic() - begun) * float(rate)))
        for _ in range(due - opened):
            client = socket.socket()
            client.setblocking(False)
            if source:
                client.bind((source[0], 0))
            client.connect_ex(address)
            waiting.register(client, selectors.EVENT_WRITE)
        opened = due
        if opened == total and not opening_took:
            opening_took = time.monotonic() - begun
        for key, event in waiting.select(TICK_SECONDS):
            client = key.fileobj
            if event & selectors.EVENT_WRITE:
                with contextlib.suppress(OSError):
                    client.send(request)
                waiting.modify(client, selectors.EVENT_READ)
                continue
            try:
                answer = client.recv(4096)
            except OSError:
                answer = b""
            statuses[int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0] += 1
            waiting.unregister(client)
            client.close()
        if opening_took and time.monotonic() - begun > opening_took + ANSWER_SECONDS:
            statuses[0] += len(waiting.get_map())
            break
    print(json.dumps({"statuses": statuses, "seconds": opening_took}))


if __name__ == "__main__":
    main()
