"""Tokens, keys and certificates for those who come in, and for the servers they come to."""

from __future__ import annotations

import base64
import hmac
import json
import shutil
import subprocess
import time
from pathlib import Path

from conftest import not_run
from harness import binary

SECRET = "the-secret-of-these-tests-is-long-enough"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(claims: dict | bytes, header: dict) -> str:
    """What a JWT's signature is over. Bytes are taken as they are."""
    claims = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return f"{encoded(json.dumps(header).encode())}.{encoded(claims)}"


def jwt(claims: dict | bytes, header: dict | None = None, secret: str | bytes = SECRET) -> str:
    secret = secret.encode() if isinstance(secret, str) else secret
    text = unsigned(claims, header or {"alg": "HS256"})
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}"


def mint(name: str, role: str, *words: str) -> dict:
    """As an operator makes a token."""
    argv = [str(binary()), "token", "new", "--name", name, "--role", role, "--json", *words]
    return json.loads(subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout)


def openssl(*words: str | Path, data: bytes = b"", folder: Path | None = None) -> bytes:
    if not shutil.which("openssl"):
        not_run("openssl makes keys and certificates")
    return subprocess.run(["openssl", *words], cwd=folder, input=data, capture_output=True, timeout=30, check=True).stdout


def certificate(folder: Path) -> Path:
    """An authority, `ca.pem`, and a certificate of 127.0.0.1, `cert.pem` with `key.pem`. Gives the authority."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", folder=folder)
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    openssl("req", "-x509", *key, "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=server", *signed, folder=folder)
    return folder / "ca.pem"


class RsaKey:
    """A key pair that tokens are signed with."""

    def __init__(self, folder: Path, kid: str) -> None:
        self.kid, self.path = kid, folder / f"{kid}.pem"
        openssl("genrsa", "-out", self.path, "2048")

    def public(self) -> bytes:
        return openssl("rsa", "-in", self.path, "-pubout")

    def jwk(self) -> dict:
        modulus = openssl("rsa", "-in", self.path, "-noout", "-modulus").decode().strip().partition("=")[2]
        return {"kty": "RSA", "kid": self.kid, "use": "sig", "alg": "RS256", "n": encoded(bytes.fromhex(modulus)), "e": "AQAB"}

    def token(self, kid: str | None = None) -> str:
        text = unsigned({"sub": "ada", "exp": int(time.time()) + 600}, {"alg": "RS256", "kid": kid or self.kid})
        return f"{text}.{encoded(openssl('dgst', '-sha256', '-sign', self.path, data=text.encode()))}"
