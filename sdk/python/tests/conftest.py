from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests has set for brokers of their own is nothing to these."""
    for name in ("TRUNKLINE_BROKER", "TRUNKLINE_TOKEN", "TRUNKLINE_CA"):
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True)
class Pki:
    """An authority, another one, and a certificate of the first for 127.0.0.1."""

    ca: Path
    other: Path
    cert: bytes
    key: bytes


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("pki")

    def make(name: str, subject: str, *words: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={subject}"]
        argv = ["openssl", "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", *words]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=30)

    make("ca", "test authority")
    make("other", "another authority")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    make("server", "server", *signed)
    return Pki(folder / "ca.pem", folder / "other.pem", (folder / "server.pem").read_bytes(), (folder / "server.key").read_bytes())
