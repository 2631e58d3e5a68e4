"""What calls prove, what brokers must prove, and how an address is meant. The twin of `Credentials` in sdk/rust/src/wire.rs.

What is not given is looked for in the environment, as the command line does: TRUNKLINE_BROKER, TRUNKLINE_TOKEN, TRUNKLINE_CA.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from trunkline._errors import SettingError

Addresses: TypeAlias = str | Iterable[str]
"""One broker's address or those of several: `https://host:port`, `http://host:port` or `host:port`."""
Authority: TypeAlias = str | bytes | os.PathLike[str]
"""A PEM file's path, or what is in it."""

DEFAULT_ADDRESS = "127.0.0.1:7070"

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")
"""Where systems keep the authorities they trust, if not where OpenSSL was told that they are."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of every call of a client or a subscriber. Never shows the token."""

    token: str | None = field(default=None, repr=False)
    roots: bytes | None = field(default=None, repr=False)
    """PEM of the authorities that count; none: gRPC's own list. Only where TLS is spoken."""
    is_tls: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def target(self, address: str) -> str:
        """`host:port` of an address. `SettingError` for what is none, or is not spoken to as the others are: a broker of a cluster
        with TLS that is told of as `http://` would get the token in plain text."""
        scheme, target = _parse(address)
        if scheme == "http" and self.is_tls:
            raise SettingError(f"{address!r} is plain text, and brokers are to speak TLS: write https://")
        if scheme == "https" and not self.is_tls:
            raise SettingError(f"{address!r} speaks TLS, and the brokers that were given do not")
        return target


def credentials(addresses: Addresses | None, token: str | None, ca: Authority | None) -> tuple[Credentials, list[str]]:
    """Of what a user gave, and `host:port` of each address. Raises `SettingError`."""
    if addresses is None:
        addresses = os.environ.get("TRUNKLINE_BROKER") or DEFAULT_ADDRESS
    given = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    given = [address.strip() for address in given if address.strip()]
    if not given:
        raise SettingError("no broker's address was given")
    if ca is None:
        ca = os.environ.get("TRUNKLINE_CA")
    if token is None:
        token = os.environ.get("TRUNKLINE_TOKEN")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        # not shown: it may be all but right
        raise SettingError("the token has characters that are none of a token's: spaces, line ends, or what is not ASCII")
    is_tls = bool(ca) or any(_parse(address)[0] == "https" for address in given)
    roots = (_authority(ca) if ca else _system_authorities()) if is_tls else None
    made = Credentials(token or None, roots, is_tls)
    return made, [made.target(address) for address in given]


def _parse(address: str) -> tuple[str, str]:
    """The scheme, which may be empty, and `host:port`."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise SettingError(f"{address!r} is no address of a broker: {error}") from None
    if parts.scheme not in ("", "http", "https") or not host or not port or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingError(f"{address!r} is no address of a broker: https://host:port, http://host:port or host:port is expected")
    if parts.username is not None:
        # not shown: what is there may be a password
        raise SettingError("an address of a broker holds no user: a token is given apart from it")
    return parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _authority(given: Authority) -> bytes:
    """The certificates of a PEM file, or of its content."""
    name = "the authority"
    if isinstance(given, str) and "-----BEGIN" in given:
        given = given.encode()
    if not isinstance(given, bytes):
        name = os.fspath(given)
        try:
            given = Path(given).read_bytes()
        except OSError as error:
            raise SettingError(f"the authority's certificate cannot be read: {error}") from None
    found = b"\n".join(_CERTIFICATE.findall(given)) + b"\n"
    try:
        # gRPC would say nothing before the first connection, and then nothing clear
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise SettingError(f"{name} holds no certificate in PEM that can be read") from None
    return found


def _system_authorities() -> bytes | None:
    """Those the system trusts: gRPC would bring a list of its own, which knows no authority of a company."""
    if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ:
        return None
    for path in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        if path is not None and (file := Path(path)).is_file():
            return file.read_bytes()
    return None
