"""What functions find in their environment, as the cloud's console let one set it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def assignment(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or _NAME.match(name) is None or "\0" in value:
        # not shown whole: the value may be a password
        raise argparse.ArgumentTypeError(f"{name!r} is no KEY=VALUE" if equals else "KEY=VALUE is expected")
    return name, value


def assignments(path: str) -> list[tuple[str, str]]:
    """A file of lines `KEY=VALUE`; empty lines and those that begin with `#` say nothing, quotes around a value are none of it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    found = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        try:
            name, value = assignment(line.removeprefix("export ").lstrip())
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{path}, line {number}: {error}") from None
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found.append((name.strip(), value))
    return found


def token(path: str) -> str:
    """What a file holds, without the line's end."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
