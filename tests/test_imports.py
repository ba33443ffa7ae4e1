"""Who imports whom: the layers of docs/architecture.md, torch in its few places, and an import that costs nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from boxwright.cli._installation import EXTRAS

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "boxwright"

# Package -> the packages of ours that it may import, itself apart.
MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "models": {"core"},
    "runtimes": {"core"},
    "bench": {"core", "data", "runtimes"},
    "export": {"core", "data", "models", "runtimes", "bench"},
    "calibration": {"core", "data", "models", "runtimes", "bench", "export"},
    "training": {"core", "data", "models", "runtimes", "bench", "export"},
    "cli": {"core", "data", "models", "runtimes", "bench", "export", "calibration", "training"},
}
TORCH_PLACES = ("models/", "training/", "export/trace.py", "runtimes/torch.py")
TORCH_PACKAGES = {"torch", "torchvision", "lightning", "pytorch_lightning", "torchmetrics", "timm"}
# What may be imported at the top of a file where nothing but the base install is sure to be there.
BASE_PACKAGES = {
    "core": {"numpy", "cv2"},
    "data": {"numpy", "cv2"},
    "runtimes": {"numpy", "cv2"},
    "cli": {"numpy", "cv2", "typer", "rich"},
}


class Import(NamedTuple):
    """An import of a source file: of `module`, at `line`, run when the file is imported (`at_top`) or later."""

    file: str
    line: int
    module: str
    at_top: bool
    for_types_only: bool


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), path, at_top=True, for_types_only=False))


def _walk(node: ast.AST, path: Path, *, at_top: bool, for_types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        place = {"at_top": at_top and not inside_function, "for_types_only": for_types_only or type_checking}
        for module in _imported_modules(child, path):
            yield Import(relative(path), child.lineno, module, **place)
        yield from _walk(child, path, **place)


def _imported_modules(node: ast.AST, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = ["boxwright", *path.relative_to(PACKAGE).parent.parts]
        base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
        origin = ".".join(base) if node.level else str(node.module)
        return [f"{origin}.{alias.name}" for alias in node.names]
    return []


def all_imports() -> list[Import]:
    return [found for path in source_files() for found in imports_of(path)]


def package_of(file: str) -> str:
    return file.partition("/")[0] if "/" in file else ""


def test_every_package_has_its_place_in_the_layers() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(MAY_IMPORT)


def is_allowed(found: Import) -> bool:
    """Whether an import of ours goes to the importer's own package or down the layers."""
    importer, imported = package_of(found.file), found.module.partition(".")[2].partition(".")[0]
    if imported in ("", "__version__"):  # the package itself: its version or its place, but none of its lazy names
        names = root_names_used(PACKAGE / found.file)
        return all(name.startswith("__") for name in names)
    return importer in ("", imported) or imported in MAY_IMPORT[importer]


def root_names_used(path: Path) -> set[str]:
    """What a file uses as `boxwright.<name>`."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    attributes = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return {node.attr for node in attributes if ast.unparse(node.value) == "boxwright"}


def test_imports_go_down_the_layers_only() -> None:
    ours = [found for found in all_imports() if found.module.partition(".")[0] == "boxwright"]
    assert len(ours) > 100
    wrong = [f"{found.file}:{found.line} imports {found.module}" for found in ours if not is_allowed(found)]
    assert not wrong, "an edge that the layers do not have:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "module", "expected"),
    [
        ("core/boxes.py", "boxwright.core.errors", True),
        ("core/boxes.py", "boxwright.runtimes.detector", False),
        ("data/coco.py", "boxwright.core.errors", True),
        ("data/coco.py", "boxwright.models", False),
        ("bench/accuracy.py", "boxwright.data", True),
        ("bench/accuracy.py", "boxwright.export.api", False),
        ("training/config.py", "boxwright.calibration", False),
        ("cli/doctor.py", "boxwright", True),
        ("cli/doctor.py", "boxwright.training", True),
    ],
)
def test_the_rule_itself(file: str, module: str, expected: bool) -> None:
    assert is_allowed(Import(file, 1, module, at_top=True, for_types_only=False)) is expected


def test_the_root_imports_nothing_of_ours_at_the_top() -> None:
    found = imports_of(PACKAGE / "__init__.py")
    assert found
    assert not [entry for entry in found if entry.module.startswith("boxwright") and not entry.for_types_only]


def test_torch_is_imported_in_its_places_alone() -> None:
    wrong = [
        f"{found.file}:{found.line} imports {found.module}"
        for found in all_imports()
        if found.module.partition(".")[0] in TORCH_PACKAGES
        and not found.for_types_only
        and not found.file.startswith(TORCH_PLACES)
    ]
    assert not wrong, "torch outside its places:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(BASE_PACKAGES))
def test_top_level_imports_need_the_base_install_alone(package: str) -> None:
    allowed = {*sys.stdlib_module_names, "boxwright", "__future__", *BASE_PACKAGES[package]}
    wrong = [
        f"{found.file}:{found.line} imports {found.module}"
        for found in all_imports()
        if package_of(found.file) == package
        and found.file not in ("runtimes/torch.py",)
        and found.at_top
        and not found.for_types_only
        and found.module.partition(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_that_is_imported_comes_with_the_base_install_or_an_extra() -> None:
    brought = {name.partition(".")[0] for _, modules in EXTRAS.values() for name in modules}
    known = {*sys.stdlib_module_names, "boxwright", "__future__", "numpy", "cv2", "typer", "rich", *brought}
    wrong = [
        f"{found.file}:{found.line} imports {found.module}"
        for found in all_imports()
        if found.module.partition(".")[0] not in known
    ]
    assert not wrong, "brought by no extra:\n" + "\n".join(wrong)


IMPORT_WITHOUT_TORCH = """
import importlib, importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {torch_packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)

sys.meta_path.insert(0, Refuse())
failed = {{}}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(failed))
"""


def test_an_engine_is_built_with_the_extras_of_its_engines_alone() -> None:
    """As the walkthrough for Jetson installs them: `boxwright[onnxruntime]` and what `boxwright[tensorrt]` brings."""
    brought = {name for extra in ("onnxruntime", "tensorrt") for name in EXTRAS[extra][1]}
    others = {name for _, modules in EXTRAS.values() for name in modules} - brought - {"google.protobuf"}  # onnx has it
    program = IMPORT_WITHOUT_TORCH.format(torch_packages={name.partition(".")[0] for name in others})
    modules = ["boxwright.export.api", "boxwright.export.to_tensorrt", "boxwright.runtimes.tensorrt"]
    finished = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(modules), capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout) == {}


def test_everything_else_imports_without_torch() -> None:
    files = [relative(path) for path in source_files()]
    modules = [
        ".".join(["boxwright", *file.removesuffix(".py").removesuffix("__init__").rstrip("/").split("/")]).rstrip(".")
        for file in files
        if not file.startswith(TORCH_PLACES)
    ]
    assert len(modules) > 40
    program = IMPORT_WITHOUT_TORCH.format(torch_packages=sorted(TORCH_PACKAGES))
    answer = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(modules), capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import boxwright", {"numpy", "cv2", "typer", "rich", "torch", "onnx", "onnxruntime", "openvino"}),
        ("import boxwright.cli.main", {"numpy", "cv2", "torch", "onnx", "onnxruntime", "openvino"}),
        (
            "from boxwright.cli.main import main; main(['--help'])",
            {"numpy", "cv2", "torch", "onnx", "onnxruntime", "openvino", "boxwright.cli.doctor"},
        ),
        ("from boxwright import Detections", {"torch", "onnx", "onnxruntime", "openvino", "boxwright.runtimes"}),
        ("from boxwright import Detector", {"torch", "onnx", "onnxruntime", "openvino", "boxwright.models"}),
    ],
)
def test_importing_loads_no_more_than_it_needs(statement: str, absent: set[str]) -> None:
    program = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.splitlines()[-1].split())
    assert "boxwright" in loaded
    assert not loaded & absent
