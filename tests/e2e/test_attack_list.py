"""Every row of the attack list is shown by tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import attack
from attack_rows import ROWS

pytestmark = pytest.mark.short

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# those of callbacks are cargo's: sdk/functions calls them, no listener is attacked
ELSEWHERE = {"A35"}


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
    assert row in ELSEWHERE or marked().get(row), f"no end-to-end test is marked with {row}"
    assert ROWS[row].tests, f"{row} names no test of cargo"
    for named in ROWS[row].tests:
        file, _, name = named.partition("::")
        source = (ROOT / file).read_text()
        # the attributes of a test stand between its mark and its name
        assert re.search(rf"#\[(tokio::)?test[^\n]*\](\s*#\[[^\n]*\])*\s*(async )?fn {name}\(", source), f"{file} has no test {name}"


def test_marks_name_rows_that_there_are():
    unknown = marked().keys() - ROWS.keys()
    assert not unknown, f"{unknown} are no rows of the list"


def test_control_characters_are_found():
    assert attack.raw_controls("plain\n\ttext \u00fc") == []
    assert attack.raw_controls("a\x1b[31mb\x07\r\x7f\u009b") == sorted(map(repr, "\x1b\x07\r\x7f\u009b"))
