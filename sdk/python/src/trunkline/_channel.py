"""Connections to brokers, with the settings of every channel."""

from __future__ import annotations

import grpc

from trunkline import _limits as limits
from trunkline._credentials import Credentials

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


def channel(target: str, credentials: Credentials) -> grpc.aio.Channel:
    """A channel to `host:port` of its own; it connects when first used. Calls carry `credentials.metadata`."""
    if credentials.is_tls:
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(credentials.roots), options=_OPTIONS)
    return grpc.aio.insecure_channel(target, options=_OPTIONS)
