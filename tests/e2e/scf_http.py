"""The files of three functions as HTTP functions: what a backend on one's own server comes down to.

`python scf_http.py PORT FOLDER` serves `FOLDER/registration.py` and so on at `/registration` and so on.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLOTS = ("registration", "transmission", "cleanup")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main_handler


FUNCTIONS = {f"/{slot}": load(Path(sys.argv[2]) / f"{slot}.py") for slot in SLOTS}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            status, answer = 200, FUNCTIONS[self.path](event, {"request_id": self.headers["idempotency-key"]})
        except Exception:
            traceback.print_exc()
            status, answer = 500, {}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()
