"""What the documentation shows is code that the type checker takes and that runs as far as it can without a broker."""

from __future__ import annotations

import asyncio
import re
import wsgiref.simple_server
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Pki
from mypy import api as mypy

import trunkline

SDK = Path(__file__).resolve().parents[1]
ROOT = SDK.parents[1]


def snippets() -> list[tuple[str, str]]:
    found = []
    for page in (SDK / "README.md", ROOT / "docs/python.md", ROOT / "README.md"):
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)):
            found.append((f"{page.parent.name}_{page.stem}_{number}".replace("-", "_").lower(), code))
    return found


def test_the_documentation_has_examples():
    assert len(snippets()) >= 3


@pytest.mark.parametrize(("name", "code"), snippets(), ids=[name for name, _ in snippets()])
def test_an_example_runs_until_it_would_connect(name, code, monkeypatch, pki: Pki):
    reached = []
    monkeypatch.setattr(trunkline, "run", lambda subscriber, handler, **_: reached.append((subscriber, handler)))
    monkeypatch.setattr(asyncio, "run", lambda coroutine: (coroutine.close(), reached.append(coroutine)))
    server = SimpleNamespace(serve_forever=lambda: reached.append("server"))
    monkeypatch.setattr(wsgiref.simple_server, "make_server", lambda *_: server)
    monkeypatch.chdir(pki.ca.parent)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
    assert reached


def test_examples_are_typed(tmp_path):
    files = []
    for name, code in snippets():
        (tmp_path / f"{name}.py").write_text(code)
        files.append(str(tmp_path / f"{name}.py"))
    files += [str(path) for path in (SDK / "examples").glob("*.py") if path.stem != "__init__"]
    out, err, code = mypy.run(["--strict", "--config-file", str(SDK / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"), *files])
    assert code == 0, out + err


def test_the_options_of_the_page_are_those_of_the_program():
    from trunkline.functions import cli

    run = next(action for action in cli.parser()._actions if action.dest == "verb").choices["run"]  # type: ignore[index, union-attr]
    options = {option for action in run._actions for option in action.option_strings if option.startswith("--")} - {"--help"}
    documented = set(re.findall(r"`(--[a-z-]+)`", (ROOT / "docs/python.md").read_text()))
    assert options == documented, options ^ documented


def test_the_wheel_s_licence_is_the_repository_s():
    assert (SDK / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
