"""A well-behaved client in a process of its own: `python bystander.py HOST PORT PATH [CA]`. It echoes all the time, one message after the
other, and prints of each when it was sent (monotonic clock) and how long it took, in seconds. `-` instead: it never came back.

A process, not a thread: in the attacker's own process its times would tell of Python's lock, not of the server.
"""

from __future__ import annotations

import ssl
import sys
import time

import wire

PAUSE_SECONDS = 0.01
PATIENCE_SECONDS = 30


def main() -> None:
    host, port, path = sys.argv[1:4]
    tls = ssl.create_default_context(cafile=sys.argv[4]) if len(sys.argv) > 4 else None
    with wire.Socket((host, int(port)), path, seconds=PATIENCE_SECONDS, tls=tls) as client:
        number = 0
        while True:
            number += 1
            sent = time.monotonic()
            try:
                client.send_text(str(number))
                came = client.receive_text(PATIENCE_SECONDS) == str(number)
            except (OSError, AssertionError, wire.Closed):
                came = False
            print(f"{sent:.6f} {time.monotonic() - sent:.6f}" if came else f"{sent:.6f} -", flush=True)
            if not came:
                return
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
