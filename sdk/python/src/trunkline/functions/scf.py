"""The three functions' dialect: what they are given and what their answers mean. Pure.

Every value inside `websocket` is a string, because users' functions concatenate them.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from dataclasses import dataclass
from typing import Any, TypeAlias

from trunkline import _limits as limits
from trunkline._context import Context
from trunkline._event import CloseCause, Closed, Message, Opened, encoded
from trunkline._handler import Registration

Event: TypeAlias = dict[str, Any]

_REQUESTS = uuid.UUID("6d1b7e0c-3f0a-5b39-9d0e-5c3b9f0a7a11")
"""Namespace of request ids: any fixed UUID will do."""

REJECTED = 403
"""HTTP status for a client that a registration function turns away."""
REJECTION_CHARS_MAX = 64 << 10
"""Longest answer to it."""


class BadAnswer(Exception):
    """An answer that is not what the dialect says, where it matters."""


@dataclass(frozen=True, slots=True)
class Front:
    """What `requestContext` says beside the connection."""

    path: str | None = None
    """The API's path, with its parameters; `None`: as the client asked for it."""
    stage: str = "release"
    forward_request: bool = False
    """Whether to add `queryString`, `pathParameters` and `headers`."""


def request_id(cx: Context) -> str:
    """The same for every attempt at an event."""
    return str(uuid.uuid5(_REQUESTS, cx.idempotency_key))


def registration_event(cx: Context, opened: Opened, front: Front) -> Event:
    """A connection asks to be let in."""
    request: Event = {
        "serviceName": cx.api,
        "path": front.path if front.path is not None else opened.path,
        "httpMethod": "GET",
        "requestId": request_id(cx),
        "identity": {"secretId": opened.principal} if opened.principal else {},
        "sourceIp": _ip(opened.peer),
        "stage": front.stage,
        "websocketEnable": True,
    }
    if front.forward_request:
        request["queryString"] = opened.query_parameters()
        request["pathParameters"] = dict(opened.parameters)
        request["headers"] = dict(opened.headers)
    websocket = {"action": "connecting", "secConnectionID": str(cx.connection)}
    if opened.subprotocols:
        websocket["secWebSocketProtocol"] = ",".join(opened.subprotocols)
    if extensions := opened.header("sec-websocket-extensions"):
        websocket["secWebSocketExtensions"] = extensions
    return {"requestContext": request, "websocket": websocket}


def transmission_event(cx: Context, message: Message) -> Event:
    """A message was received."""
    if isinstance(message, str):
        data = {"dataType": "text", "data": message}
    else:
        data = {"dataType": "binary", "data": base64.b64encode(message).decode()}
    return {"websocket": {"action": "data send", "secConnectionID": str(cx.connection), **data}}


def cleanup_event(cx: Context, closed: Closed) -> Event:
    """A connection was closed; the last three values are an addition to the dialect."""
    cause = closed.cause.name.lower()
    said = {"closeCode": str(closed.code), "closeReason": closed.reason, "closeCause": cause}
    return {"websocket": {"action": "closing", "secConnectionID": str(cx.connection), **said}}


def wants_cleanup(closed: Closed) -> bool:
    """Nothing is to be cleaned up after a connection that was turned away."""
    return closed.cause is not CloseCause.REJECTED


def function_context(cx: Context, function: str, timeout: float) -> Event:
    """The `context` of a call."""
    return {
        "request_id": request_id(cx),
        "function_name": function,
        "function_version": "$LATEST",
        "namespace": cx.api,
        "time_limit_in_ms": round(timeout * 1000),
        "memory_limit_in_mb": 0,
        "environ": "",
        "trunkline": {
            "api": cx.api,
            "group": cx.group,
            "partition": cx.partition,
            "offset": str(cx.offset),
            "attempt": cx.attempt,
            "connection": str(cx.connection),
            "idempotency_key": cx.idempotency_key,
        },
    }


def decision(answer: object, opened: Opened) -> Registration:
    """What a registration function decided. Raises `BadAnswer`."""
    said = _json(answer)
    if not isinstance(said, dict):
        raise BadAnswer(f"a registration function answers with an object, not {type(said).__name__}")
    number = said.get("errNo")
    # True is an int, and no number of an error
    if not isinstance(number, int) or isinstance(number, bool):
        raise BadAnswer(f"errNo must be a whole number, not {number!r}")
    if number != 0:
        why = said.get("errMsg")
        body = json.dumps({"errNo": number, "errMsg": why if isinstance(why, str) else ""}, ensure_ascii=False)
        if len(body) > REJECTION_CHARS_MAX:
            raise BadAnswer(f"an answer that turns a client away has at most {REJECTION_CHARS_MAX} characters")
        return Registration.reject(REJECTED, body.encode(errors="replace"))
    websocket = said.get("websocket")
    chosen = websocket.get("secWebSocketProtocol") if isinstance(websocket, dict) else None
    wanted = [each.strip() for each in chosen.split(",")] if isinstance(chosen, str) else []
    # many functions send back everything that was offered
    return Registration.accept(subprotocol=next((each for each in wanted if each in opened.subprotocols), ""))


def refusal(status: int, why: str) -> Registration:
    """For a client whose registration function gave no answer."""
    return Registration.reject(status, json.dumps({"errNo": status, "errMsg": why}))


def integration_response(answer: object) -> Message | None:
    """What a transmission function's answer pushes, where the API asks for that. Raises `BadAnswer`."""
    message = _response(answer)
    if message is None:
        return None
    try:
        size = len(encoded(message)[1])
    except UnicodeEncodeError as error:
        raise BadAnswer(f"the answer is no text: {error}") from None
    if size > limits.MESSAGE_BYTES_MAX:
        # the same would come again and again
        raise BadAnswer(f"an answer of {size} bytes is too large to push")
    return message


def _response(answer: object) -> Message | None:
    if isinstance(answer, bytes):
        answer = _utf8(answer)
    if answer is None or answer == "":
        return None
    said = _parsed(answer) if isinstance(answer, str) else answer
    websocket = said.get("websocket") if isinstance(said, dict) else None
    if isinstance(websocket, dict) and "data" in websocket:
        return _data(websocket)
    if isinstance(answer, str):
        return answer
    try:
        return json.dumps(answer, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is no JSON: {error}") from None


def _data(websocket: dict[str, Any]) -> Message:
    kind, data = websocket.get("dataType", "text"), websocket["data"]
    if not isinstance(data, str) or kind not in ("text", "binary"):
        raise BadAnswer("an answer to push has a dataType, text or binary, and data, a string")
    if kind == "text":
        return data
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"data of the dataType binary is no base64: {error}") from None


def _json(answer: object) -> object:
    """A function may answer with an object, or with its JSON."""
    if isinstance(answer, bytes):
        answer = _utf8(answer)
    if not isinstance(answer, str):
        return answer
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is no JSON: {error}") from None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadAnswer(f"the answer is no text: {error}") from None


def _ip(peer: str) -> str:
    """The address without its port."""
    return peer.rpartition(":")[0].strip("[]") or peer
