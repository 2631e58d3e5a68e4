"""Limits that both ends of a wire rely on; those of proto/src/limits.rs."""

from __future__ import annotations

import re
import unicodedata

ENTRY_BYTES_MAX = 1 << 20
"""Most bytes of records in one log entry, unless a single record alone is larger."""
MESSAGE_BYTES_MAX = 16 << 20
"""Largest payload of a message."""
RECORD_BYTES_MAX = MESSAGE_BYTES_MAX + (128 << 10)
"""Largest record: a payload and what describes it."""
FRAME_BYTES_MAX = RECORD_BYTES_MAX + (64 << 10)
"""Largest gRPC message: one largest record and its envelope."""
NAME_BYTES_MAX = 64
"""Longest name of an API, a handler group or a member."""
CHANNEL_BYTES_MAX = 255
"""Longest channel name, in bytes of UTF-8."""
CHANNELS_PER_CONNECTION_MAX = 128
"""Most channels one connection may be in."""
ATTRIBUTES_BYTES_MAX = 4096
"""Most bytes of attributes (keys and values) of one connection."""
CLOSE_REASON_BYTES_MAX = 123
"""Longest close reason: a control frame carries at most 125 bytes (RFC 6455 §5.5), two of them the code."""
COMMANDS_MAX = 1024
"""Most commands in one submission or one commit."""
OUTCOMES_MAX = 4096
"""Most outcomes in one commit."""
KEY_BYTES_MAX = 255
"""Longest idempotency key."""
EXCEPT_MAX = 256
"""Most connections that one publish may leave out."""
CREDIT_MAX = 10_000
"""Most events in flight to one member from one broker."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


def is_name(name: str) -> bool:
    """Whether `name` may name an API, a handler group or a member: 1 to 64 of `[A-Za-z0-9._-]`."""
    return _NAME.match(name) is not None


def is_channel(channel: str) -> bool:
    """Whether `channel` may name a channel: 1 to 255 bytes of UTF-8 without control characters."""
    try:
        length = len(channel.encode())
    except UnicodeEncodeError:
        return False
    return 1 <= length <= CHANNEL_BYTES_MAX and not any(unicodedata.category(char) == "Cc" for char in channel)
