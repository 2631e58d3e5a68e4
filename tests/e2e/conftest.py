from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import attack
import harness

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def not_run(reason: str) -> None:
    """The test cannot run here. In CI nothing may be missing, so there it fails."""
    if IN_CI:
        pytest.fail(f"CI runs everything, but: {reason}", pytrace=False)
    pytest.skip(f"not run: {reason}")


@pytest.fixture
def need():
    """`need(condition, reason)`: a precondition outside this repository."""

    def check(condition: object, reason: str) -> None:
        if not condition:
            not_run(reason)

    return check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For data and logs; kept when the test fails."""
    return tmp_path


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory, request) -> Path:
    return tmp_path_factory.mktemp(request.module.__name__)


@pytest.fixture(scope="module")
def dev(module_folder):
    """One `trunkline dev` for the tests of a module that do not hurt it."""
    node = harness.Dev(module_folder).start()
    yield node
    if node.process.alive:
        node.process.stop()


@pytest.fixture
def under(request):
    """`under(target)`: `attack.attacked` for the row that the test is marked with."""

    def attacked(target: attack.Target, *, row: str | None = None, **kwargs):
        rows = [row] if row else [row for mark in request.node.iter_markers("attack") for row in mark.args]
        assert len(rows) == 1, f"{request.node.name} is marked with {rows}: name the row here"
        return attack.attacked(rows[0], target, **kwargs)

    return attacked


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    """Those of wider fixtures are running already and stay."""
    before = list(harness.Process.running)
    yield
    for process in list(harness.Process.running):
        if process not in before:
            process.kill9()
    panicked = [process.name for process in harness.Process.started if "panicked at" in process.log_text()]
    harness.Process.started[:] = harness.Process.running
    assert not panicked, f"{panicked} panicked, see the logs"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and call.when == "call":
        for process in list(harness.Process.running):
            report.sections.append((f"{process.name} (alive: {process.alive}, logs in {process.logs})", process.tail_of_log()))
    return report


def pytest_sessionfinish(session, exitstatus):
    harness.Process.kill_all()


def pytest_terminal_summary(terminalreporter):
    if attack.outcomes:
        terminalreporter.section("attack list", sep="-")
        for line in attack.table(shutil.get_terminal_size((100, 24)).columns):
            terminalreporter.write_line(line)


def pytest_report_header(config):
    path = os.environ.get("TRUNKLINE_BIN")
    return [f"trunkline: {path or 'TRUNKLINE_BIN is not set'}", f"disk: {shutil.disk_usage('/tmp').free >> 30} GiB free in /tmp"]
