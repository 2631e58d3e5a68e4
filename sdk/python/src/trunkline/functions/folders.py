"""What functions import from beside their files.

Clouds keep each function in a folder of its own, and two folders may both have a `config.py`. Here they are in one process, where a name
is imported once: so a name that several folders have is taken from the folder of whoever imports it, under a name of that folder's own.
Every other import is an ordinary one, with the functions' folders searched before all else.
"""

from __future__ import annotations

import builtins
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

log = logging.getLogger("trunkline.functions")

_SUFFIXES = {".py", ".pyc", ".so", ".pyd"}

_original = builtins.__import__
# the package that stands for a folder, by the folder; the deepest first
_packages: dict[Path, str] = {}
_shared: set[str] = set()


def search(folders: Iterable[Path]) -> None:
    """Makes imports of functions in these folders work. Called once, before the first one is loaded."""
    given = sorted(set(folders), key=lambda folder: len(folder.parts), reverse=True)
    for folder in given:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    names = Counter(name for folder in given for name in set(_names(folder)))
    shared = {name for name, count in names.items() if count > 1}
    if not shared:
        return
    for folder in given:
        if folder not in _packages:
            package = ModuleType(f"trunkline_folder_{len(_packages)}")
            package.__path__ = [str(folder)]
            sys.modules[package.__name__] = package
            _packages[folder] = package.__name__
    _shared.update(shared)
    builtins.__import__ = _import
    log.debug("each function imports those of its own folder: %s", ", ".join(sorted(shared)))


def _names(folder: Path) -> Iterable[str]:
    """What may be imported from a folder."""
    for entry in folder.iterdir():
        name = entry.name.split(".")[0]
        if name.isidentifier() and name != "__pycache__" and (entry.suffix in _SUFFIXES or entry.is_dir()):
            yield name


def _owner(globals: Mapping[str, object] | None) -> tuple[Path, str] | None:
    """The folder of the module that imports, and its package."""
    file = globals.get("__file__") if globals is not None else None
    if isinstance(file, str):
        path = Path(file)
        for folder in _packages:
            if path.is_relative_to(folder):
                return folder, _packages[folder]
    return None


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__`, which every import statement calls."""
    first = name.partition(".")[0]
    if level == 0 and first in _shared and (owner := _owner(globals)) is not None and first in _names(owner[0]):
        module = _original(f"{owner[1]}.{name}", globals, locals, fromlist or (), 0)
        # `import a.b` binds a
        return module if fromlist else sys.modules[f"{owner[1]}.{first}"]
    return _original(name, globals, locals, fromlist or (), level)
