"""Layers of the package, owners of heavy libraries, and sizes of modules and folders."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kvq_batch"
LAYERS = [
    ("domain",),
    ("config",),
    ("features",),
    ("models", "media", "metrics"),
    ("storage",),
    ("tables",),
    ("catalog",),
    ("planning",),
    ("engine",),
    ("labels",),
    ("training",),
    ("labeling", "evaluation", "analysis"),
    ("report",),
    ("notebook", "serve"),
    ("cli",),
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
OWNERS = {
    "ray": {"engine"},
    "decord": {"media"},
    "av": {"media"},
    "deltalake": {"tables", "storage"},
    "duckdb": {"tables", "catalog", "planning"},
    "fsspec": {"storage", "tables"},
    "s3fs": {"storage"},
    "torch": {"models", "training"},
    "triton": {"models"},
    "safetensors": {"models", "training"},
    "cv2": {"features"},
    "scipy": {"evaluation", "features", "metrics"},
    "sklearn": {"evaluation"},
    "matplotlib": {"report"},
    "polars": {"notebook"},
    "pandas": {"notebook"},
    "jinja2": {"report"},
    "starlette": {"serve"},
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
            if module.split(".")[0] in {"kvq_batch", "ray"}:
                yield from (f"{module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def area_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "kvq_batch" else None


def test_modules_import_their_own_layer_or_a_lower_one() -> None:
    offenders = []
    for path in MODULES:
        area = area_of(name_of(path))
        for imported in imports(path):
            library = imported.split(".")[0]
            if library in OWNERS and area not in OWNERS[library]:
                offenders.append(f"{name_of(path)} imports {library}, which belongs to {sorted(OWNERS[library])}")
            other = area_of(imported)
            if area in LAYER_OF and other in LAYER_OF and other != area and LAYER_OF[other] >= LAYER_OF[area]:
                offenders.append(f"{name_of(path)} imports {imported}: not a lower layer")
    assert not offenders, "\n".join(offenders)


def test_private_apis_of_ray_are_used_in_one_module() -> None:
    offenders = []
    for path in MODULES:
        libraries = {imported.split(".")[0] for imported in imports(path)}
        if "ray" not in libraries or name_of(path) == "kvq_batch.engine.ray_internals":
            continue
        offenders += [
            f"{name_of(path)} imports {imported}"
            for imported in imports(path)
            if re.match(r"ray\.(.*\.)?(_\w+|core\.generated)\b", imported)
        ]
        offenders += [
            f"{name_of(path)} uses {ast.unparse(node)}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and not is_own(node.value)
        ]
    assert not offenders, "\n".join(offenders)


def is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in {"self", "cls"}


def test_every_package_has_a_layer() -> None:
    areas = {area_of(name_of(path)) for path in MODULES} - {None}
    assert areas <= set(LAYER_OF)


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


def test_modules_are_short_and_documented_and_folders_small() -> None:
    offenders = []
    for path in MODULES:
        text = path.read_text()
        if len(text.splitlines()) > 600:
            offenders.append(f"{name_of(path)} is over 600 lines")
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(text)):
            offenders.append(f"{name_of(path)} has no docstring")
    modules_per_folder = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    offenders += [f"{folder} has {num} modules" for folder, num in modules_per_folder.items() if num > 20]
    assert not offenders, "\n".join(offenders)


def test_no_module_is_a_collection_of_helpers() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in MODULES if path.stem in drawers or path.parent.name in drawers]


def test_broad_excepts_are_at_the_edges_only() -> None:
    pattern = re.compile(r"except (Base)?Exception\b|except:")
    found = {name_of(path) for path in MODULES if pattern.search(path.read_text())}
    workers = {"kvq_batch.engine.decode_worker", "kvq_batch.engine.score_worker", "kvq_batch.labeling.worker"}
    # Threads of the local executor, like Ray's processes, outlive a worker that raises. The local page must not log a
    # traceback with secrets. File systems of fsspec are plug-ins: no list of their exceptions can be complete.
    edges = {"kvq_batch.cli.app", "kvq_batch.engine.executor.local", "kvq_batch.serve.pages"}
    allowed = {"kvq_batch.storage.errors", *edges, *workers}
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
