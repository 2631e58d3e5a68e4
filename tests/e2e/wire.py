"""A WebSocket client over a bare socket, able to break every rule. Nothing here helps the server."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


@dataclass
class Answer:
    """An HTTP answer's head. `status` 0: the server closed without one."""

    status: int
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def handshake(address: tuple[str, int], path: str, *, method="GET", version="HTTP/1.1", drop=(), extra=(), **replace) -> bytes:
    """A correct upgrade request, less the headers named in `drop` (lower case), plus the lines `extra`.

    `replace` takes header names in lower case with `_` for `-`; a list repeats the header.
    """
    headers = {
        "host": f"{address[0]}:{address[1]}",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
        "sec-websocket-version": "13",
    }
    headers |= {name.replace("_", "-"): value for name, value in replace.items()}
    lines = [f"{method} {path} {version}"]
    for name, value in headers.items():
        if name not in drop:
            lines += [f"{name}: {one}" for one in (value if isinstance(value, list) else [value])]
    return ("\r\n".join([*lines, *extra]) + "\r\n\r\n").encode("latin-1")


def request(address: tuple[str, int], raw: bytes, *, seconds: float = 5) -> Answer:
    """Sends `raw`, gives back the answer. The connection is closed afterwards."""
    with socket.create_connection(address, timeout=seconds) as sock:
        try:
            sock.sendall(raw)
        except OSError:
            pass  # a server may answer and close before it has read everything
        return read_answer(sock, seconds=seconds)[0]


def read_answer(sock: socket.socket, *, seconds: float = 5) -> tuple[Answer, bytes]:
    """The head of an answer, its body as far as Content-Length says, and what came after it."""
    sock.settimeout(seconds)
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return Answer(0), data
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    _, status, *reason = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    answer = Answer(int(status), reason[0] if reason else "", headers)
    length = int(headers.get("content-length", 0)) if answer.status != 101 else 0
    while len(rest) < length:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            break
        rest += more
    answer.body = rest[:length]
    return answer, rest[length:]


def frame(opcode: int, payload: bytes = b"", *, fin=True, rsv=0, masked=True, declared: int | None = None, width: int | None = None) -> bytes:
    """One frame. `declared` lies about the length; `width` (7, 16, 64) picks its encoding whatever the length."""
    length = len(payload) if declared is None else declared
    if width is None:
        width = 7 if length < 126 else 16 if length < 65536 else 64
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    if width == 7:
        head = struct.pack("!BB", first, mask_bit | length)
    elif width == 16:
        head = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + apply_mask(payload, mask)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    if not payload:
        return b""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


@dataclass
class Frame:
    opcode: int
    payload: bytes
    fin: bool
    rsv: int
    masked: bool

    @property
    def close_code(self) -> int:
        return struct.unpack("!H", self.payload[:2])[0] if len(self.payload) >= 2 else 1005


class Closed(Exception):
    """The server closed TCP."""


class Socket:
    """An upgraded connection."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        *,
        seconds: float = 10,
        receive_buffer: int | None = None,
        source: str | None = None,
        tls: ssl.SSLContext | None = None,
        **kwargs,
    ):
        """`source`: the address to come from."""
        self.sock = socket.socket()
        if source:
            self.sock.bind((source, 0))
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(seconds)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.sock = tls.wrap_socket(self.sock, server_hostname=address[0])
        self.sock.sendall(handshake(address, path, **kwargs))
        self.answer, self.data = read_answer(self.sock, seconds=seconds)
        if self.answer.status != 101:
            self.sock.close()
            raise AssertionError(f"{path}: {self.answer.status} instead of 101: {self.answer.body!r}")

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_) -> None:
        self.sock.close()

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def send_text(self, text: str) -> None:
        self.send(frame(TEXT, text.encode()))

    def _take(self, count: int) -> bytes:
        while len(self.data) < count:
            try:
                more = self.sock.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                raise Closed
            self.data += more
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def receive(self, seconds: float = 10) -> Frame:
        self.sock.settimeout(seconds)
        first, second = self._take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        masked = bool(second & 0x80)
        mask = self._take(4) if masked else b"\0\0\0\0"
        payload = self._take(length)
        return Frame(first & 0x0F, apply_mask(payload, mask) if masked else payload, bool(first & 0x80), first >> 4 & 7, masked)

    def receive_text(self, seconds: float = 10) -> str:
        got = self.receive(seconds)
        assert got.opcode == TEXT and got.fin, got
        return got.payload.decode()

    def expect_close(self, code: int, *, seconds: float = 5) -> Frame:
        """Reads until the close frame, which must carry `code`; then TCP must be closed within `seconds`."""
        while True:
            try:
                got = self.receive(seconds)
            except Closed:
                raise AssertionError(f"TCP was closed without a close frame; expected {code}") from None
            if got.opcode == CLOSE:
                break
        assert got.close_code == code, f"closed with {got.close_code} ({got.payload[2:]!r}), expected {code}"
        assert not got.masked, "a server's frame is masked"
        self.expect_end(seconds)
        return got

    def expect_end(self, seconds: float = 5) -> None:
        """TCP is closed by the server within `seconds`, whatever it still sends."""
        end = time.monotonic() + seconds
        while True:
            self.sock.settimeout(max(0.01, end - time.monotonic()))
            try:
                if not self.sock.recv(65536):
                    return
            except ConnectionResetError:
                return
            except TimeoutError:
                raise AssertionError(f"TCP is still open {seconds:g} s later") from None

    def close(self, code: int = 1000) -> None:
        """A clean close; waits for the answer."""
        self.send(frame(CLOSE, struct.pack("!H", code)))
        self.expect_close(code)
