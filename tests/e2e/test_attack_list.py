"""Every row of the attack list is shown by tests that there are."""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import attack
from attack_rows import ROWS

pytestmark = pytest.mark.short

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@functools.cache
def marked() -> dict[str, list[str]]:
    """The end-to-end tests of each row, found in the source: what is run today may be a part of them."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.attack":
                    for row in decorator.args:
                        found.setdefault(ast.literal_eval(row), []).append(f"{path.name}::{node.name}")
    return found


def test_the_rows_are_those_of_the_list():
    assert list(ROWS) == [f"A{number}" for number in [*range(1, 13), *range(25, 37)]]


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_its_tests(row):
    assert marked().get(row), f"no end-to-end test is marked with {row}"
    assert ROWS[row].tests, f"{row} names no test of cargo"
    for named in ROWS[row].tests:
        file, _, name = named.partition("::")
        source = (ROOT / file).read_text()
        # the attributes of a test stand between its mark and its name
        assert re.search(rf"#\[(tokio::)?test[^\n]*\n(\s*#\[[^\n]*\n)*\s*(async )?fn {name}\(", source), f"{file} has no test {name}"


def test_marks_name_rows_that_there_are():
    unknown = marked().keys() - ROWS.keys()
    assert not unknown, f"{unknown} are no rows of the list"


def test_control_characters_are_found():
    assert attack.raw_controls("plain\n\ttext \u00fc") == []
    assert attack.raw_controls("a\x1b[31mb\x07\r\x7f\u009b") == sorted(map(repr, "\x1b\x07\r\x7f\u009b"))


class Standing:
    """A server and its well-behaved client as they should be, with one thing that goes wrong during an attack."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong
        self.during = False
        self.processes = [SimpleNamespace(name="server", log_text=lambda: self.when("says", "before\n", self.said), pid=7, alive=True)]
        self.bystander = SimpleNamespace(calm=[0.001], echoes=self.echoes, one_after=self.one_after)
        self.said, self.sent = "before\n", 0.0

    def when(self, wrong: str, usual, otherwise):
        return otherwise if self.during and self.wrong == wrong else usual

    def rss_kib(self) -> dict[str, int]:
        return {"server": self.when("grows", 50_000, 50_001 + attack.RSS_KIB)}

    def metrics(self) -> dict[str, float]:
        return {'refused_total{why="x"}': 5.0 if not self.during or self.wrong == "counts nothing" else 6.0}

    def echoes(self) -> list[tuple[float, float]]:
        return [(self.sent, self.when("is slow", 0.001, attack.ECHO_SECONDS + 1))]

    def one_after(self, _: float) -> None:
        assert not (self.during and self.wrong == "loses the client"), "lost"


@pytest.mark.parametrize(
    ("wrong", "said", "complaint"),
    [
        ("", "", None),
        ("grows", "", "memory within 10 MiB"),
        ("counts nothing", "", "to count 1"),
        ("is slow", "", "took 6.0 s"),
        ("loses the client", "", "lost"),
        ("is another", "", "did not survive"),
        ("says", "who came with hunter2", "the log of server holds hunter2"),
        ("says", "who is \x1b[31mred", "holds .*x1b"),
        ("says", "nothing of it", None),
    ],
)
def test_what_is_measured_around_a_row_can_fail(monkeypatch, wrong, said, complaint):
    monkeypatch.setattr(attack, "RSS_SECONDS", 0.1)
    monkeypatch.setattr(attack, "COUNT_SECONDS", 0.1)
    monkeypatch.setattr(attack, "outcomes", attack.defaultdict(attack.Outcome))
    server = Standing(wrong)
    with contextlib.nullcontext() if complaint is None else pytest.raises(AssertionError, match=complaint):
        with attack.attacked("A1", server, metric=("refused_total", {"why": "x"}), secrets=("hunter2",)):
            server.during, server.said, server.sent = True, f"before\n{said}\n", time.monotonic()
            server.processes[0].pid = 8 if wrong == "is another" else 7
    assert (attack.outcomes["A1"].cases, attack.outcomes["A1"].failed) == (1, 0 if complaint is None else 1)
