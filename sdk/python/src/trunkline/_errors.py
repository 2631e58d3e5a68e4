"""Errors that answer two questions: may I try again, and may it have happened?"""

from __future__ import annotations

import enum

import grpc

from trunkline.v1 import trunkline_pb2 as wire


class Retry(enum.Enum):
    """Whether trying again may help."""

    SAFE = "safe"
    """Nothing happened: try again, best after a moment."""
    SAME_KEY = "same-key"
    """It may have happened: try again with the same idempotency key, or not at all."""
    NO = "no"
    """The same will be refused again."""


class Code(enum.IntEnum):
    """Why a command or a call was not carried out; stable."""

    UNSPECIFIED = 0
    APPLIED = 1
    GONE = 2
    TOO_LARGE = 3
    THROTTLED = 4
    NOT_AUTHORIZED = 5
    UNKNOWN = 6
    STALE_EPOCH = 7
    NOT_OPEN = 8
    INVALID = 9
    KEY_REUSED = 10
    NO_LEADER = 11
    FORWARDED = 12
    REFUSED = 13

    @classmethod
    def of_number(cls, number: int) -> Code:
        """Of a newer version: unspecified."""
        try:
            return cls(number)
        except ValueError:
            return cls.UNSPECIFIED

    @classmethod
    def of_name(cls, name: str) -> Code:
        """Brokers send the code's name, with or without its prefix, in any case."""
        name = name.upper().replace("-", "_").removeprefix("CODE_")
        return cls.__members__.get(name, cls.UNSPECIFIED)

    @property
    def retry(self) -> Retry:
        """What the code says about trying again."""
        if self in (Code.THROTTLED, Code.NO_LEADER):
            return Retry.SAFE
        return Retry.SAME_KEY if self is Code.UNKNOWN else Retry.NO


_MEANING = {
    Code.GONE: "no such connection, or it is closed",
    Code.TOO_LARGE: "too large",
    Code.THROTTLED: "a bound is hit, try again later",
    Code.NOT_AUTHORIZED: "not authorized",
    Code.UNKNOWN: "it may have happened: try again with the same key",
    Code.STALE_EPOCH: "the partition belongs to another member now",
    Code.NOT_OPEN: "the event is not open",
    Code.INVALID: "malformed",
    Code.KEY_REUSED: "the idempotency key was used with another body",
    Code.NO_LEADER: "the partition has no leader at the moment",
    Code.REFUSED: "refused",
}


def _describe(code: Code, message: str) -> str:
    meaning = _MEANING.get(code, "")
    if meaning and message:
        return f"{meaning} ({message})"
    return meaning or message or code.name.lower()


class TrunklineError(Exception):
    """Whatever goes wrong between a program and Trunkline."""

    code: Code | None = None
    """The broker's code, where it gave one."""

    @property
    def retry(self) -> Retry:
        """Whether trying again may help."""
        return Retry.NO

    @property
    def may_have_happened(self) -> bool:
        """Whether it may have happened all the same."""
        return self.retry is Retry.SAME_KEY

    @property
    def is_gone(self) -> bool:
        """Whether it failed because the connection is not there, or not any more."""
        return self.code is Code.GONE


class CommandError(TrunklineError, ValueError):
    """A command is malformed; it was not sent."""


class SettingError(TrunklineError, ValueError):
    """An address, a name or a number that cannot be."""


class CommandFailure(TrunklineError):
    """A command was not carried out."""

    def __init__(self, code: Code, message: str = "") -> None:
        super().__init__(_describe(code, message))
        self.code: Code = code
        self.message = message

    @property
    def retry(self) -> Retry:
        return self.code.retry


class Unreachable(TrunklineError):
    """No connection to the broker: nothing happened."""

    @property
    def retry(self) -> Retry:
        return Retry.SAFE


class Untrusted(Unreachable):
    """No connection, because the broker has not proved who it is: its certificate is of another authority, for another name, or
    expired. Nothing was sent, no token either."""

    @property
    def retry(self) -> Retry:
        return Retry.NO


class NoAnswer(TrunklineError):
    """The connection broke before the answer, or the answer makes no sense: it may have happened."""

    @property
    def retry(self) -> Retry:
        return Retry.SAME_KEY


class Refused(TrunklineError):
    """The broker refused the call."""

    def __init__(self, code: Code, message: str, retry: Retry, grpc_code: grpc.StatusCode, says: str | None = None) -> None:
        super().__init__(says or f"the broker refuses: {_describe(code, message)}")
        self.code: Code = code
        self.message = message
        self.grpc_code = grpc_code
        self._retry = retry

    @property
    def retry(self) -> Retry:
        return self._retry

    @property
    def is_final(self) -> bool:
        """Whether a subscription that is refused like this will always be."""
        final = (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.ALREADY_EXISTS,
        )
        return self._retry is Retry.NO and self.grpc_code in final


class Denied(Refused):
    """The broker knows no such token, or the token's role does not allow this. The same token will be refused again."""

    def __init__(self, message: str, grpc_code: grpc.StatusCode) -> None:
        if grpc_code is grpc.StatusCode.UNAUTHENTICATED:
            says = "the broker asks for a token, and knows none like this (`token`, TRUNKLINE_TOKEN)"
        else:
            says = f"the broker does not allow this: {message}"
        super().__init__(Code.NOT_AUTHORIZED, message, Retry.NO, grpc_code, says)


TRANSPORT_MADE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
"""Codes a broken connection or a deadline ends in, without a word from the broker."""

_NOT_CONNECTED = (
    "failed to connect to all addresses",
    "connection refused",
    "dns resolution failed",
    "errors resolving",
    "name resolution failure",
)
_DISTRUST = (
    ("certificate_verify_failed", "its certificate is of no authority that counts (`ca`, TRUNKLINE_CA), or out of date"),
    ("hostname verification", "its certificate is for another name than the one in its address"),
    ("peer name", "its certificate is for another name than the one in its address"),
)
_HINTS = (
    ("wrong_version_number", "it does not speak TLS there, as https:// or an authority has it"),
    ("socket closed", "it does not speak gRPC in plain text there; https:// perhaps"),
    ("failed parsing http/2", "it does not speak gRPC in plain text there; https:// perhaps"),
)


def of_rpc(error: grpc.aio.AioRpcError) -> TrunklineError:
    """What a failed call means."""
    trailers = error.trailing_metadata()
    said: dict[str, str] = {}
    for key, value in trailers or ():
        said[key] = value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
    details = error.details() or ""
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Denied(details, error.code())
    if (retry := said.get("trunkline-retry")) is not None:
        known = {kind.value: kind for kind in Retry}
        code = Code.of_name(said.get("trunkline-code", ""))
        return Refused(code, details, known.get(retry, Retry.NO), error.code())
    if error.code() is grpc.StatusCode.UNAVAILABLE and any(text in details.lower() for text in _NOT_CONNECTED):
        # the transport offers nothing but its text; whoever misses a new one is told "may have happened", which is safe
        return _not_connected(details)
    if error.code() in TRANSPORT_MADE:
        return NoAnswer(f"the broker did not answer: {details or error.code().name}")
    return Refused(Code.UNSPECIFIED, details, Retry.NO, error.code())


def _not_connected(details: str) -> Unreachable:
    """In words about brokers, with the transport's own behind them."""
    own = details.rpartition("last error: ")[2]
    for text, meaning in _DISTRUST:
        if text in own.lower():
            return Untrusted(f"the broker has not proved who it is: {meaning} ({own})")
    hints = (meaning for text, meaning in _HINTS if text in own.lower())
    return Unreachable(f"no connection to the broker: {next((f'{hint} ({own})' for hint in hints), own)}")


def outcome(status: wire.Status) -> bool:
    """What became of a command: whether another partition carries it out. Raises `CommandFailure`."""
    code = Code.of_number(status.code)
    if code in (Code.APPLIED, Code.FORWARDED):
        return code is Code.FORWARDED
    raise CommandFailure(code, status.message)
