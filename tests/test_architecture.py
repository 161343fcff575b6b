"""The package's shape, read from its import statements and from what a fresh interpreter loads."""

import ast
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from types import FunctionType

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ckpt_tools"

# Low to high: a part imports from its own layer and from lower ones. The package's own __init__ and
# __main__ stand above them all.
LAYERS = (
    {"errors", "dtypes", "atomic", "records", "fleet", "forks", "version"},
    {"sources", "remote"},
    {"checkpoint", "contents", "report"},
    {"pickles"},
    {"formats"},
    {"audit", "convert", "analysis"},
    {"verification"},
    {"serving"},
    {"runtime"},
    {"render"},
    {"cli"},
    {"__init__"},
    {"__main__"},
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}

RUNTIME_ONLY = {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}
EXTRAS = RUNTIME_ONLY | {"fsspec", "aiohttp", "requests", "dask", "distributed"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PARTS = {module.split(".")[1] for module in MODULES if "." in module}


def part_of(module: str) -> str:
    """The part of the package that a module, or a name in one, belongs to."""
    _, _, below = module.partition(".")
    head = below.partition(".")[0]
    return head if head in PARTS else "__init__"


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """Every name that *source*, the text of *module*, imports anywhere, as an absolute dotted name."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                base = importlib.util.resolve_name("." * level + (base or ""), package)
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield importlib.util.resolve_name(name, package)


def imports_of_package() -> Iterator[tuple[str, str]]:
    for module, path in MODULES.items():
        for target in imports(module, path.read_text("utf-8"), is_package=path.name == "__init__.py"):
            yield module, target


def internal_imports() -> Iterator[tuple[str, str]]:
    return ((m, target) for m, target in imports_of_package() if target.split(".")[0] == "ckpt_tools")


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import a.b, c
from d import e as f
from . import sibling
from ..other import name
if TYPE_CHECKING:
    from g import h
def function():
    import i
    importlib.import_module("j.k")
    import_module(".l", __package__)
    __import__("m")
"""
    assert set(imports("ckpt_tools.formats.zip", source)) == {
        "a.b", "c", "d.e", "ckpt_tools.formats.sibling", "ckpt_tools.other.name", "g.h", "i",
        "j.k", "ckpt_tools.formats.l", "m",
    }  # fmt: skip
    assert list(imports("ckpt_tools.formats", "from .zip import x", is_package=True)) == ["ckpt_tools.formats.zip.x"]


def test_every_part_has_a_layer() -> None:
    assert {part_of(module) for module in MODULES} - HEIGHT.keys() == set()


def test_imports_run_downward() -> None:
    upward = [
        f"{module} imports {target}"
        for module, target in internal_imports()
        if HEIGHT[part_of(target)] > HEIGHT[part_of(module)]
    ]
    assert upward == []


def test_parts_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module, target in internal_imports():
        graph.setdefault(part_of(module), set()).add(part_of(target))
    for part, targets in graph.items():
        targets.discard(part)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_only_runtime_imports_torch() -> None:
    outside = [
        f"{module} imports {target}"
        for module, target in imports_of_package()
        if target.split(".")[0] in RUNTIME_ONLY and part_of(module) != "runtime"
    ]
    assert outside == []


def test_only_the_command_line_imports_runtime() -> None:
    others = [
        f"{module} imports {target}"
        for module, target in internal_imports()
        if part_of(target) == "runtime" and part_of(module) not in {"runtime", "cli"}
    ]
    assert others == []


LIGHT = [module for module in MODULES if part_of(module) not in {"runtime", "__main__"}]


@pytest.mark.parametrize("module", LIGHT)
def test_public_methods_are_documented_where_first_defined(module: str) -> None:
    classes = inspect.getmembers(
        importlib.import_module(module), lambda value: inspect.isclass(value) and value.__module__ == module
    )
    undocumented = [
        f"{class_name}.{name}"
        for class_name, cls in classes
        if not class_name.startswith("_")
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and isinstance(value, (FunctionType, classmethod, staticmethod, property, cached_property))
        and not inspect.getdoc(getattr(cls, name))  # a base's docstring counts
    ]
    assert undocumented == []


@pytest.mark.parametrize("module", LIGHT)
def test_imports_without_any_extra(module: str) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRAS)}))"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{blocked}; import {module}"], capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize(
    "format", ["torch_zip", "safetensors", "torchscript", "exported_program", "gguf", "onnx", "peft"]
)
def test_inspect_of_headers_loads_neither_numpy_nor_torch(format: str, fixtures_dir: Path) -> None:
    manifest = json.loads((fixtures_dir / "MANIFEST.json").read_text("utf-8"))
    files = [
        fixtures_dir / entry["file"]
        for entry in manifest["fixtures"]
        if entry["format"] == format and "error" not in entry
    ]
    assert files
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ckpt_tools", "inspect", *files],
        capture_output=True,
        text=True,
    )
    imported, said = [], []
    for line in process.stderr.splitlines():
        (imported if line.startswith("import time:") else said).append(line)
    assert (process.returncode, said) == (0, [])
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in imported}
    assert "ckpt_tools" in loaded
    assert loaded & {"numpy", "ml_dtypes", "torch"} == set()
