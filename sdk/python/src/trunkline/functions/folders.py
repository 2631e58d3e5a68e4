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
# of the names that several folders have, those in each
_shared: dict[Path, set[str]] = {}


def search(folders: Iterable[Path]) -> None:
    """Makes imports of functions in these folders work. Called once, before the first one is loaded."""
    given = sorted(set(folders), key=lambda folder: len(folder.parts), reverse=True)
    for folder in given:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    names = {folder: set(_names(folder)) for folder in given}
    counts = Counter(name for found in names.values() for name in found)
    shared = {name for name, count in counts.items() if count > 1}
    if not shared:
        return
    for folder in given:
        if folder not in _packages:
            package = ModuleType(f"trunkline_folder_{len(_packages)}")
            package.__path__ = [str(folder)]
            sys.modules[package.__name__] = package
            _packages[folder] = package.__name__
        _shared[folder] = names[folder] & shared
    builtins.__import__ = _import
    log.debug("each function imports those of its own folder: %s", ", ".join(sorted(shared)))


def _names(folder: Path) -> Iterable[str]:
    """What may be imported from a folder."""
    for entry in folder.iterdir():
        name = entry.name.split(".")[0]
        if name.isidentifier() and name != "__pycache__" and (entry.suffix in _SUFFIXES or entry.is_dir()):
            yield name


def _package_with(name: str, globals: Mapping[str, object] | None) -> str | None:
    """The package of the folder that the importing module is in, if that folder has the name and others too."""
    file = globals.get("__file__") if globals is not None else None
    if isinstance(file, str) and any(name in names for names in _shared.values()):
        path = Path(file)
        for folder, package in _packages.items():
            if path.is_relative_to(folder):
                return package if name in _shared[folder] else None
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
    if level == 0 and (package := _package_with(first, globals)) is not None:
        module = _original(f"{package}.{name}", globals, locals, fromlist or (), 0)
        # `import a.b` binds a
        return module if fromlist else sys.modules[f"{package}.{first}"]
    return _original(name, globals, locals, fromlist or (), level)
