"""Connections to brokers: addresses, and the settings of every channel."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import grpc

from trunkline import _limits as limits
from trunkline._errors import SettingError

_CONNECT_TIMEOUT_MS = 5000
_KEEP_ALIVE_MS = 5000
"""A peer that answers no ping this long is dead."""
_RECONNECT_MS = (100, 2000)
"""Short enough that a broker that is back is not left alone for long."""

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", limits.FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", limits.FRAME_BYTES_MAX),
    ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEP_ALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS[0]),
    # by its name something else: how long one attempt to connect may take
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS[1]),
    # a connection is this object's own: what one session does to it is nothing to another
    ("grpc.use_local_subchannel_pool", 1),
    # a proxy of the environment is meant for the web, not for brokers
    ("grpc.enable_http_proxy", 0),
]


def target(address: str) -> str:
    """`host:port` of an address, which may begin with `http://`. `SettingError` for anything else."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise SettingError(f"{address!r} is no address of a broker: {error}") from None
    if parts.scheme != "http" or not host or not port or parts.path.strip("/") or parts.query or parts.username:
        raise SettingError(f"{address!r} is no address of a broker: http://host:port is expected")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def targets(addresses: str | Iterable[str]) -> list[str]:
    """Of one address or of several."""
    found = [target(address) for address in ([addresses] if isinstance(addresses, str) else addresses)]
    if not found:
        raise SettingError("no broker's address was given")
    return found


def channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port` of its own; it connects when first used."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)
