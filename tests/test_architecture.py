"""The house keeps its floors: imports run down, libraries have their rooms, everything public says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "paramcompress"
FLOORS = (
    ("errors", "records", "jit", "prior", "heap", "verdicts", "threads"),
    ("units", "trellis", "metrics", "dictionaries", "scratch", "patterns", "calls"),
    ("tokens",),
    ("prefix",),
    ("entropy", "checkers", "tables"),
    (
        "prices",
        "budget",
        "baseline",
        "notices",
        "difference_page",
        "explanation_page",
        "checkpoint",
        "config",
        "pages",
        "predict",
        "plot",
        "vectors",
    ),
    ("quantize", "feedback", "codec", "inputs", "modules"),
    (
        "container",
        "report",
        "report_files",
        "moments",
        "predicted",
        "predicted_checkpoint",
    ),
    ("fit", "per_sample"),
    ("layer", "metric_space", "calibration"),
    ("plan", "lockstep", "predicted_layer", "compensation", "metric_fit"),
    ("calibrated", "adam"),
    ("guide", "accounts"),
    ("job", "judge"),
    ("pipeline",),
    ("sweeps", "gate", "differences", "anatomy", "explanations"),
    ("reporting",),
    ("cli",),
    ("__main__",),
)
"""From the ground up. A room imports from the floors below its own and, in a folder, from its own folder. `__init__`
hands out names of all floors, and nobody imports from it but for the version.
"""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {
    "typer": {"cli"},
    "rich": {"cli", "difference_page", "explanation_page", "notices", "report", "tables"},
    "safetensors": {"checkpoint"},
    "pickle": {"checkpoint"},
    "zipfile": {"checkpoint"},
    "numba": {"jit"},
    "zstandard": {"codec", "container", "predicted"},
    "matplotlib": {"plot"},
}
"""Libraries that only these rooms may import."""
MODULES = sorted(ROOT.rglob("*.py"))
EACH_MODULE = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Absolute module and names of every import, those inside functions too; those for type checkers are left out."""
    package = ("paramcompress", *path.relative_to(ROOT).parts[:-1])
    tree = ast.parse(path.read_text())
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, ()
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])]), tuple(name.name for name in node.names)


def rooms_imported(path: Path) -> Iterator[str]:
    for module, names in imports(path):
        parts = module.split(".")
        if parts[0] == "paramcompress":
            yield from parts[1:2] or (name if name in LEVEL else "__init__" for name in names)


@EACH_MODULE
def test_imports_run_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in rooms_imported(path):
        if other == "__init__":
            versions = {
                name for module, names in imports(path) if module == "paramcompress" for name in names
            } - LEVEL.keys()
            assert versions == {"__version__"}
        elif other != room:
            assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"


@EACH_MODULE
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    for module, _ in imports(path):
        library = module.split(".")[0]
        assert room_of(path) in DOORS.get(library, {room_of(path)}), f"{path.name} imports {library}"


@EACH_MODULE
def test_torch_load_only_in_checkpoint_and_never_unsafe(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert room_of(path) == "checkpoint"
            assert {word.arg: ast.unparse(word.value) for word in node.keywords}.get("weights_only") == "True"


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} == LEVEL.keys() | {"__init__"}


@EACH_MODULE
def test_everything_public_is_documented(path: Path) -> None:
    """Modules, public classes and functions; methods too, but for short ones whose name and signature say it all."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            length = (node.end_lineno or 0) - node.lineno
            assert ast.get_docstring(node) or (length <= 12 and isinstance(node, ast.FunctionDef)), node.name


@EACH_MODULE
def test_no_assert_on_what_comes_from_outside(path: Path) -> None:
    """Doors raise errors: `assert` vanishes under -O."""
    if room_of(path) in {"checkpoint", "container", "config", "cli"}:
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


def test_the_control_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a kernel that imports the conductor, in each spelling there is."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for text in (
        "from paramcompress.pipeline import squeeze",
        "from paramcompress import pipeline",
        "import paramcompress.pipeline",
        "from .pipeline import squeeze",
        "from . import pipeline",
        "def late():\n    from .pipeline import squeeze",
    ):
        module = tmp_path / "entropy.py"
        module.write_text(text)
        assert list(rooms_imported(module)) == ["pipeline"]
        with pytest.raises(AssertionError, match="entropy imports pipeline"):
            test_imports_run_down(module)
