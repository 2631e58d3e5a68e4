"""What Lambda's runtime does, in a page: calls the functions of a file over HTTP.

`python runtime.py PORT FILE` serves every `function(event, context)` of FILE at its name, such as http://127.0.0.1:9000/connect.
"""
import importlib.util
import inspect
import json
import os
import sys
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Context:
    """What functions commonly read of Lambda's context."""

    def __init__(self, name, request_id, seconds=29):
        self.function_name, self.aws_request_id = name, request_id
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self):
        return max(0, int((self._end - time.monotonic()) * 1000))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = self.path.strip("/")
        if name not in FUNCTIONS:
            return self.answer(404, {"message": "no such function"})
        try:
            # the same on every attempt for one event
            answer = FUNCTIONS[name](event, Context(name, self.headers["idempotency-key"]))
        except Exception as error:
            traceback.print_exc()
            # as Lambda says that a function raised: Trunkline tries again
            answer = {"errorMessage": str(error), "errorType": type(error).__name__}
        self.answer(200, answer)

    def answer(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def load(path):
    spec = importlib.util.spec_from_file_location("functions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: function for name, function in functions if list(inspect.signature(function).parameters) == ["event", "context"]}


if __name__ == "__main__":
    # SDKs sign what they send; Trunkline looks at that only if `broker.aws.keys` names keys
    for name, value in {"AWS_DEFAULT_REGION": "local", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}.items():
        os.environ.setdefault(name, value)
    FUNCTIONS = load(sys.argv[2])
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()
