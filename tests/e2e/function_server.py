"""A backend as its users have it: HTTP functions of the `scf` and `aws` dialects. Run as a process of its own, so that it can be killed.

Every call is written to a journal, one JSON object a line, before it is answered. Messages say what is to be done with them:
`echo …` is pushed back, `fail …` is answered with 500 until the file `mended` stands beside the journal, `bad …` with 400, `slow …`
after a while. Of the subprotocols `late` is answered when the client has gone. Where registrations tell the request
(`forward_request`), only clients with the token are let in.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import requests

from json_http import serve

JOURNAL = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("journal")
PUSH = sys.argv[3] if len(sys.argv) > 3 else ""
SLOW_SECONDS = 0.2
LATE_SECONDS = 6
TOKEN = "the-token-that-this-function-knows"
_lock = threading.Lock()
_local = threading.local()


def write(line: dict) -> None:
    with _lock, open(JOURNAL, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()


def session() -> requests.Session:
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    return _local.session


def push(connection: str, text: str, key: str) -> None:
    """Once, however often the event comes: the call's key names the push too."""
    body = {"websocket": {"action": "data send", "secConnectionID": connection, "dataType": "text", "data": text}}
    answer = session().post(PUSH, data=json.dumps(body), headers={"idempotency-key": key}, timeout=10).json()
    assert answer["errNo"] in (0, 410), answer


def token(event: dict) -> str | None:
    """From the header, the query, or after `bearer` among the subprotocols."""
    context, offered = event["requestContext"], event["websocket"].get("secWebSocketProtocol", "").split(",")
    if "bearer" in offered[:-1]:
        return offered[offered.index("bearer") + 1]
    return context["headers"].get("authorization", "").removeprefix("Bearer ") or context["queryString"].get("access_token")


def registration(event: dict, key: str) -> tuple[int, dict]:
    websocket = event["websocket"]
    assert event["requestContext"]["websocketEnable"] is True, event
    if "headers" in event["requestContext"] and token(event) != TOKEN:
        return 200, {"errNo": 401, "errMsg": "who are you?"}
    answer = {"action": "connecting", "secConnectionID": websocket["secConnectionID"]}
    if "secWebSocketProtocol" in websocket:
        answer["secWebSocketProtocol"] = websocket["secWebSocketProtocol"]
    if "refuse" in websocket.get("secWebSocketProtocol", ""):
        return 200, {"errNo": 101, "errMsg": "not today"}
    if "late" in websocket.get("secWebSocketProtocol", ""):
        time.sleep(LATE_SECONDS)
    if "break" in websocket.get("secWebSocketProtocol", ""):
        return 400, {"errNo": 0, "errMsg": "ok"}
    return 200, {"errNo": 0, "errMsg": "ok", "websocket": answer}


def transmission(event: dict, key: str) -> tuple[int, dict]:
    websocket = event["websocket"]
    data = websocket["data"]
    if data.startswith("echo ") or websocket["dataType"] == "binary":
        push(websocket["secConnectionID"], data, key)
    if data.startswith("slow "):
        time.sleep(SLOW_SECONDS)
    if data.startswith("bad "):
        return 400, {}
    if data.startswith("fail ") and not JOURNAL.with_name("mended").exists():
        return 500, {}
    return 200, {}


def cleanup(event: dict, key: str) -> tuple[int, dict]:
    return 200, {}


FUNCTIONS = {"/registration": registration, "/transmission": transmission, "/cleanup": cleanup}


def react(path: str, headers, body: str) -> tuple[int, dict]:
    event = json.loads(body)
    if path == "/aws":
        write({"function": "aws", "event": event})
        return 200, {"statusCode": 200}
    websocket = event["websocket"]
    assert all(isinstance(value, str) for value in websocket.values()), event
    line = {"function": path[1:], "connection": websocket["secConnectionID"], "data": websocket.get("data")}
    line |= {"key": headers["idempotency-key"], "attempt": int(headers["x-trunkline-attempt"]), "event": event}
    line |= {"headers": {name.lower(): value for name, value in headers.items()}, "body": body}
    write(line)
    return FUNCTIONS[path](event, line["key"])


if __name__ == "__main__":
    serve(int(sys.argv[1]), react, *sys.argv[4:])
