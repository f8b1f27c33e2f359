"""The floor rule: a module imports only from lower floors, on its own floor only inside its own room.

Read from the sources with ``ast`` (``.py``, ``.pyi``) and by line (``.pyx``, ``.pxd``), imports inside
functions and under ``TYPE_CHECKING`` included: a late import is no way around the rule.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lazystore"

#: room -> (floor, the package's top-level names that make it up)
ROOMS = {
    "ground": (0, {"errors", "config", "stats", "progress"}),
    "_core": (1, {"_core"}),
    "fetch": (2, {"fetch"}),
    "formats": (3, {"formats"}),
    "cache": (4, {"cache"}),
    "parallel": (5, {"parallel"}),
    "streaming": (6, {"streaming"}),
    "lazy": (6, {"lazy"}),
    "hub": (7, {"hub"}),
    "web": (7, {"web"}),
    "adapters": (7, {"adapters"}),
    "testing": (8, {"testing"}),
    "commands": (9, {"cli", "commands", "demo", "demo_reader", "__main__"}),
}
ROOM_OF = {name: room for room, (_, names) in ROOMS.items() for name in names}
FACADE = "__init__"

SOURCES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".pyi", ".pyx", ".pxd"})
CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.*)|c?import\s+([\w.]+.*))$")


def _module_of(path: Path) -> list[str]:
    """``cache/memory.py`` -> ``["lazystore", "cache", "memory"]``; packages end in ``__init__``."""
    return ["lazystore", *path.relative_to(PACKAGE).with_suffix("").parts]


def _absolute(path: Path, module: str, level: int) -> str:
    if level == 0:
        return module
    base = _module_of(path)[:-level]
    return ".".join([*base, module] if module else base)


def _python_imports(path: Path) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(path, node.module or "", node.level)
            found.append((module, [alias.name for alias in node.names]))
    return found


def _cython_imports(path: Path) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = CYTHON_IMPORT.match(line.split("#")[0].rstrip())
        if match is None:
            continue
        if match.group(3):
            found += [(part.split(" as ")[0].strip(), []) for part in match.group(3).split(",")]
            continue
        module = match.group(1)
        level = len(module) - len(module.lstrip("."))
        names = [part.split(" as ")[0].strip(" ()") for part in match.group(2).split(",")]
        found.append((_absolute(path, module.lstrip("."), level), [n for n in names if n]))
    return found


def _targets(imports: list[tuple[str, list[str]]]) -> set[str]:
    """Top-level names of lazystore that the imports reach; ``__init__`` for the facade itself."""
    targets = set()
    for module, names in imports:
        parts = module.split(".")
        if parts[0] != "lazystore":
            continue
        if len(parts) > 1:
            targets.add(parts[1])
        else:  # `import lazystore`, `from lazystore import errors`, `from lazystore import StreamingDataset`
            targets |= {n if n in ROOM_OF else FACADE for n in names} or {FACADE}
    return targets


def violations(path: Path) -> list[str]:
    top = _module_of(path)[1]
    imports = _python_imports(path) if path.suffix in {".py", ".pyi"} else _cython_imports(path)
    if top == FACADE:
        # the facade re-exports what applications use, never the commands or the test tools
        return sorted(t for t in _targets(imports) if t != FACADE and ROOMS[ROOM_OF[t]][0] > 7)
    room = ROOM_OF[top]
    floor = ROOMS[room][0]
    wrong = []
    for target in sorted(_targets(imports)):
        if target == FACADE:
            if floor < 8:
                wrong.append("lazystore (the facade)")
        elif ROOM_OF[target] != room and ROOMS[ROOM_OF[target]][0] >= floor:
            wrong.append(f"lazystore.{target}")
    return wrong


def test_the_package_is_where_this_test_looks() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_module_lives_in_a_known_room(path: Path) -> None:
    top = _module_of(path)[1]
    assert top == FACADE or top in ROOM_OF, f"{path.name} is in no room: give {top!r} a floor"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_module_imports_only_from_lower_floors(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    ("where", "text", "wrong"),
    [
        ("fetch/a.py", "from lazystore.errors import FetchError", []),
        ("fetch/a.py", "from .source import Read", []),
        ("fetch/a.py", "from ..formats import leaves", ["lazystore.formats"]),
        ("fetch/a.py", "def f():\n    import lazystore.cache.memory as m", ["lazystore.cache"]),
        ("fetch/a.py", "from lazystore import StreamingDataset", ["lazystore (the facade)"]),
        ("config.py", "from lazystore import errors", []),
        ("cache/a.py", "from lazystore.testing import ObjectStore", ["lazystore.testing"]),
        ("_core/a.pyx", "from lazystore.cache.memory cimport Store", ["lazystore.cache"]),
        ("_core/a.pyx", "from ._layout cimport load_u32\nfrom libc.string cimport memcpy", []),
        ("_core/a.pxd", "cimport lazystore.fetch.local as local", ["lazystore.fetch"]),
        ("demo.py", "import lazystore\nfrom lazystore.testing import ObjectStore", []),
        ("__init__.py", "from lazystore.demo import main", ["demo"]),
    ],
)
def test_the_rule_sees_every_way_to_import(
    where: str, text: str, wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lazystore"
    path = package / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    monkeypatch.setitem(globals(), "PACKAGE", package)
    assert violations(path) == wrong
