"""An HTTP server of functions: JSON in, JSON out. What a backend on one's own server has under it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

React = Callable[[str, Mapping[str, str], str], tuple[int, dict]]
"""Given path, headers (by any case) and body: status and answer."""


class Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256


def serve(port: int, react: React, pem: str | None = None) -> None:
    """For ever, on loopback; behind TLS with a certificate and its key in `pem`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            status, answer = react(self.path, self.headers, self.rfile.read(int(self.headers["content-length"])).decode())
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = Server(("127.0.0.1", port), Handler)
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(f"listening functions 127.0.0.1:{port}", flush=True)
    print("ready", flush=True)
    server.serve_forever()
