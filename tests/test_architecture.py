"""The floors of the house: who may import whom, who owns which library, and how long a module may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kvq_batch"
FLOORS = [
    ("domain",),
    ("spec",),
    ("models", "media", "io", "metrics"),
    ("engine", "training", "evaluation", "report"),
    ("cli",),
]
FLOOR_OF = {name: level for level, names in enumerate(FLOORS) for name in names}
OWNERS = {
    "ray": {"engine"},
    "decord": {"media"},
    "av": {"media"},
    "deltalake": {"io"},
    "duckdb": {"io"},
    "fsspec": {"io"},
    "s3fs": {"io"},
    "torch": {"models", "training"},
    "safetensors": {"models", "training"},
    "scipy": {"metrics"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            module = node.module or ""
            yield module
            if module.startswith("kvq_batch"):
                yield from (f"{module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def area_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "kvq_batch" else None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_keeps_to_its_floor_and_its_libraries(path: Path) -> None:
    area = area_of(name_of(path))
    for imported in imports(path):
        library = imported.split(".")[0]
        if library in OWNERS:
            assert area in OWNERS[library], f"{name_of(path)} imports {library}, which belongs to {OWNERS[library]}"
        other = area_of(imported)
        if area is None or other is None or other not in FLOOR_OF or other == area:
            continue
        assert FLOOR_OF[other] < FLOOR_OF[area], f"{name_of(path)} imports {imported}: not a lower floor"


def test_every_area_has_a_floor() -> None:
    areas = {area_of(name_of(path)) for path in MODULES} - {None}
    assert areas <= set(FLOOR_OF)


def test_no_import_circles() -> None:
    names = {name_of(path): path for path in MODULES}
    graph = {name: {i for i in imports(path) if i in names and i != name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import circle: " + " -> ".join([*trail, name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_short_and_says_why_it_exists(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350, f"{path.name} is over 350 lines"
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in MODULES if path.stem in drawers or path.parent.name in drawers]


def test_catching_everything_stands_in_two_places_only() -> None:
    pattern = re.compile(r"except (Base)?Exception\b|except:")
    found = {name_of(path) for path in MODULES if pattern.search(path.read_text())}
    workers = {f"kvq_batch.engine.{kind}_worker" for kind in ("decode", "score", "label")}
    allowed = {"kvq_batch.cli.app", *workers}
    assert found <= allowed, f"catches everything: {sorted(found - allowed)}"


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from kvq_batch.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'ray', 'decord', 'av', 'duckdb', 'deltalake', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
