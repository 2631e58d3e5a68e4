"""Functions as files: what they import, what they find in their environment, and that they are loaded again."""

from __future__ import annotations

import argparse
import asyncio
import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trunkline.functions import cli, environment, folders
from trunkline.functions.instances import FunctionFile, Instances, LoadError
from trunkline.functions.reload import Sources, run_until_changed


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what functions change of the process."""
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)
    monkeypatch.setattr(folders, "_packages", {})
    monkeypatch.setattr(folders, "_shared", {})
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def function(folder: Path, text: str, slot: str = "transmission") -> FunctionFile:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "index.py").write_text(text)
    return FunctionFile.parse(slot, str(folder / "index.py"))


def answers(*files: FunctionFile, times: int = 1) -> list[object]:
    async def main() -> list[object]:
        folders.search(file.path.parent for file in files)
        instances = [Instances(file, 1) for file in files]
        return [await each.call({}, {}, 10) for each in instances for _ in range(times)]

    return asyncio.run(main())


# ---- imports ---------------------------------------------------------------------------------------------------------------

IMPORTS = """
import only_{name}
import config
from config import NAME
import tools.deep
from tools import deep as other, flat
from tools.deep import WHERE

def main_handler(event, context):
    import config as late
    import tools.deep as lately
    assert late is config and lately is tools.deep is other
    return [NAME, WHERE, flat.config.NAME, only_{name}.config.NAME]
"""


def lay_out(folder: Path, name: str) -> FunctionFile:
    (folder / "tools").mkdir(parents=True)
    (folder / "config.py").write_text(f"NAME = {name!r}\n")
    # one that only this folder has, and imports one that both have
    (folder / f"only_{name}.py").write_text("import config\n")
    (folder / "tools/__init__.py").write_text("")
    (folder / "tools/deep.py").write_text("from config import NAME as WHERE\nfrom . import flat\n")
    (folder / "tools/flat.py").write_text("import config\n")
    return function(folder, IMPORTS.format(name=name))


def test_functions_of_several_folders_import_their_own_modules_of_the_same_name(tmp_path):
    first, second = lay_out(tmp_path / "a", "a"), lay_out(tmp_path / "b", "b")
    assert answers(first, second) == [["a"] * 4, ["b"] * 4]


def test_a_folder_within_another_has_its_own_modules(tmp_path):
    outer, inner = lay_out(tmp_path / "a", "a"), lay_out(tmp_path / "a/inner", "b")
    assert answers(outer, inner) == [["a"] * 4, ["b"] * 4]


def test_functions_of_one_folder_share_what_they_import(tmp_path):
    (tmp_path / "counted.py").write_text("counter = []\n")
    text = "import counted, sqlite3\ndef main_handler(event, context):\n    counted.counter.append(1)\n    return len(counted.counter)\n"
    (tmp_path / "second.py").write_text(text)
    before = builtins.__import__
    assert answers(function(tmp_path, text), FunctionFile.parse("cleanup", str(tmp_path / "second.py"))) == [1, 2]
    assert builtins.__import__ is before, "nothing is changed where nothing is needed"


# ---- what is no function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def handler(event, context): pass\n", "index.py:handler would name handler"),
        ("def main_handler(event): pass\n", "does not take (event, context)"),
        ("def main_handler(event, context, more): pass\n", "does not take (event, context)"),
    ],
)
def test_what_is_no_function_is_told_with_what_to_do(tmp_path, text, says):
    with pytest.raises(LoadError) as refused:
        function(tmp_path, text).load()
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from . import helper\n", "`import helper` finds helper.py beside it"),
        ("import no_such_module\n", "to be installed for"),
        ("def main_handler(\n", "SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_told_with_what_to_do(tmp_path, text, says, capsys):
    path = function(tmp_path, text).path
    assert cli.main(["run", "--api", "x", "--broker", "127.0.0.1:1", "--transmission", str(path)]) == 64
    assert says in capsys.readouterr().err


# ---- coroutines ------------------------------------------------------------------------------------------------------------


def test_calls_of_a_coroutine_share_one_event_loop(tmp_path):
    text = """
import asyncio
seen = set()
async def main_handler(event, context):
    seen.add(id(asyncio.get_running_loop()))
    return len(seen)
"""
    assert answers(function(tmp_path, text), times=3) == [1, 1, 1]


def test_a_coroutine_that_hangs_is_ended_and_its_place_comes_back(tmp_path):
    text = "import asyncio\nasync def main_handler(event, context):\n    await asyncio.sleep(3600 if event else 0)\n    return 'ok'\n"

    async def main() -> None:
        instances = Instances(function(tmp_path, text), 1)
        for _ in range(2):
            with pytest.raises(Exception, match="no answer within"):
                await instances.call({"hang": 1}, {}, 0.05)
        # two are stuck, as many as there are places and one more
        assert await instances.call({}, {}, 20) == "ok"
        async with asyncio.timeout(20):
            while instances.stuck:
                await asyncio.sleep(0.02)

    asyncio.run(main())


# ---- the environment -------------------------------------------------------------------------------------------------------


def test_the_environment_s_file_and_words(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    (tmp_path / "env").write_text("# database\n\nURL=postgres://a=b\nexport QUOTED=' x '\nBOTH=file\nEMPTY=\n")
    text = "import os\nassert (os.environ['URL'], os.environ['QUOTED'], os.environ['EMPTY']) == ('postgres://a=b', ' x ', '')\nraise ValueError(os.environ['BOTH'])\n"
    words = ["run", "--api", "x", "--broker", "127.0.0.1:1", "--transmission", str(function(tmp_path, text).path)]
    assert cli.main([*words, "--env", "BOTH=word", "--env-file", str(tmp_path / "env")]) == 64
    assert os.environ["BOTH"] == "word"


@pytest.mark.parametrize("wrong", ["NAME", "=x", "1A=x", "A B=x", "A=x\0"])
def test_what_is_no_assignment_is_refused_without_its_value(wrong, tmp_path):
    with pytest.raises(argparse.ArgumentTypeError):
        environment.assignment(wrong)
    (tmp_path / "env").write_text(f"A=b\n{wrong}\n")
    with pytest.raises(argparse.ArgumentTypeError, match="line 2"):
        environment.assignments(str(tmp_path / "env"))


def test_a_token_comes_from_a_file(tmp_path):
    (tmp_path / "token").write_text("tl_secret\n")
    words = ["run", "--api", "x", "--transmission", "f.py", "--token-file", str(tmp_path / "token")]
    member = cli.subscriber(cli.parser().parse_args(words))
    assert member._settings.credentials.token == "tl_secret"
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args([*words, "--token-file", str(tmp_path / "none")])
    assert ended.value.code == 64


def test_a_stop_waits_as_long_as_a_call_may_take():
    words = ["run", "--api", "x", "--transmission", "f.py", "--timeout", "42s"]
    assert cli.subscriber(cli.parser().parse_args(words))._settings.grace == 42
    assert cli.subscriber(cli.parser().parse_args([*words, "--grace", "1s"]))._settings.grace == 1


# ---- --reload --------------------------------------------------------------------------------------------------------------


def touch(file: Path, text: str) -> None:
    """Another time than any before, whatever the clock's steps are."""
    file.write_text(text)
    touched = file.stat().st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(touched, touched))


def test_a_source_that_changes_is_seen_and_others_are_not(tmp_path):
    file = function(tmp_path / "f", "")
    (tmp_path / "f/data").mkdir()
    sources = Sources([file.path.parent])
    assert sources.changed() is None
    touch(tmp_path / "f/data/rows.py", "not imported")
    (tmp_path / "f/rows.csv").write_text("1")
    (tmp_path / "other.py").write_text("")
    assert sources.changed() is None
    touch(file.path, "x = 1")
    assert sources.changed() == file.path
    assert sources.changed() is None, "once"
    # as editors do
    file.path.unlink()
    assert sources.changed() is None
    touch(file.path, "x = 2")
    touch(file.path, "x = 3")
    assert sources.changed() == file.path
    touch(tmp_path / "f/helper.py", "")
    assert sources.changed() == tmp_path / "f/helper.py", "perhaps the one that was missing"


def test_what_runs_is_finished_before_the_program_starts_again(tmp_path):
    file, finished = function(tmp_path, ""), []

    async def run() -> None:
        try:
            touch(file.path, "x = 1")
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            finished.append(1)

    assert asyncio.run(run_until_changed(run, Sources([tmp_path]))) == file.path
    assert finished

    async def ends() -> None:
        raise RuntimeError("by itself")

    with pytest.raises(RuntimeError):
        asyncio.run(run_until_changed(ends, Sources([tmp_path])))
