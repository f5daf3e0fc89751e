"""Data moves one way: a module, which is a file or a folder, imports only modules to the left of it."""

import ast
from pathlib import Path

import ia2

ORDER = (  # noqa: SIM905 - a line that reads from left to right
    "errors processes files progress memory world data answers task chat prompt tasks contexts anatomy models capture "
    "passes losses methods adapters bank targets tracking jobs checkpoints training config statistics metrics "
    "recalibration evaluation summary lessons report results estimate run trainer merging export doctor comparison "
    "overview analysis explore sweep demo cli __main__"
).split()
SOURCE = Path(ia2.__file__).parent


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ia2":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ia2."):
            found.add((node.module or "").split(".")[1])
    return found


def test_modules_import_only_what_is_left_of_them() -> None:
    modules = {path.stem: [path] for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    modules |= {path.parent.name: list(path.parent.glob("*.py")) for path in SOURCE.glob("*/__init__.py")}
    assert set(modules) == set(ORDER)
    for name, paths in modules.items():
        imported = set[str]().union(*map(imported_modules, paths))
        later = imported & set(ORDER[ORDER.index(name) + 1 :])
        assert not later, f"{name} imports {later}, which stands to the right of it"


def test_the_embedded_world_imports_nothing_else_of_the_package() -> None:
    for path in (SOURCE / "world").glob("*.py"):
        assert imported_modules(path) <= {"world"}


def test_the_public_names_exist_and_are_the_declared_ones() -> None:
    assert sorted(ia2._HOMES) == list(ia2.__all__)
    for name in ia2.__all__:
        assert getattr(ia2, name).__module__ == f"ia2.{ia2._HOMES[name]}"


def test_float64_is_made_on_the_cpu() -> None:
    """Apple's GPUs (mps) have none."""
    for path in SOURCE.rglob("*.py"):
        assert ".double().cpu()" not in path.read_text("utf-8"), path.name
