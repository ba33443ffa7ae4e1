"""The wheel: what is in it, and that it predicts in an environment with its declared dependencies and nothing else."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import cv2
import numpy as np
import pytest

import boxwright
from models_for_tests import colour_cells_onnx

pytest.importorskip("scikit_build_core", reason="the extra dev is not installed, so no wheel can be built here")
requirements = pytest.importorskip("packaging.requirements")

# In one process: two would compile in the same folder at the same time.
pytestmark = pytest.mark.xdist_group("packaging")

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = ("onnxruntime",)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; the compiler's work is shared with `make install`."""
    directory = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--config-settings=build-dir=build/{wheel_tag}"]
    _run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(directory), "."], cwd=REPOSITORY)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel and what the wheel says that it needs; returns its folder.

    The dependencies are links to this environment's packages, so that nothing is downloaded.
    """
    directory = tmp_path_factory.mktemp("environment")
    _run([sys.executable, "-m", "venv", "--without-pip", str(directory)])
    python = str(directory / "bin" / "python")
    _run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel)])
    scheme = {"base": str(directory), "platbase": str(directory)}
    site_packages = Path(sysconfig.get_path("platlib", vars=scheme))
    metadata = next(site_packages.glob("boxwright-*.dist-info")) / "METADATA"
    declared = re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name in sorted(_closure(declared, EXTRAS)):
        _link(name, site_packages)
    return directory


def test_the_wheel_holds_the_package_and_its_kernels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert [name for name in names if name.endswith((".so", ".pyd"))] == [f"boxwright/core/_native{suffix}"]
    sources = {path.relative_to(REPOSITORY / "src").as_posix() for path in (REPOSITORY / "src").rglob("*.py")}
    assert sources <= set(names)
    assert "boxwright/py.typed" in names
    # What `boxwright doctor --build-plugins` compiles on the machine of the engine.
    built = ("plugin_openvino.cpp", "plugin_tensorrt.cpp", "decode_nms_cuda.cu", "cuda/scan.h", "letterbox.cpp")
    for name in ("CMakeLists.txt", "kernels.cmake", "decode_nms.h", *built):
        assert f"boxwright/csrc/{name}" in names
    assert not any("fuzz" in name for name in names)
    assert {name.partition("/")[0] for name in names} == {"boxwright", f"boxwright-{boxwright.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_base_install_is_small(environment: Path) -> None:
    program = (
        "import importlib.util as u; print([n for n in ('torch', 'onnx', 'openvino', 'pytest') if u.find_spec(n)])"
    )
    assert _python(environment, program) == "[]\n"


def test_it_predicts_what_this_environment_predicts(environment: Path, tmp_path: Path) -> None:
    from boxwright import Detector

    model, picture = _write_model_and_picture(tmp_path)
    expected = Detector(model, backend="onnxruntime")(cv2.imread(str(picture)))
    assert len(expected.scores) == 2
    program = """
import json, sys
from boxwright import Detector
from boxwright.core.kernels import instruction_sets
found = Detector(sys.argv[1])(sys.argv[2])
print(json.dumps({
    "boxes": found.boxes_xyxy.tolist(), "scores": found.scores.tolist(), "class_ids": found.class_ids.tolist(),
    "kernels": instruction_sets(), "file": sys.modules["boxwright"].__file__, "torch": "torch" in sys.modules,
}))
"""
    answer = json.loads(_python(environment, program, str(model), str(picture)))
    assert Path(answer["file"]).is_relative_to(environment)
    assert not answer["torch"]
    assert answer["kernels"]
    np.testing.assert_array_equal(np.array(answer["boxes"], np.float32), expected.boxes_xyxy)
    np.testing.assert_array_equal(np.array(answer["scores"], np.float32), expected.scores)
    assert answer["class_ids"] == expected.class_ids.tolist()


def test_the_console_script_runs_there(environment: Path) -> None:
    answer = _run([str(environment / "bin" / "boxwright"), "doctor", "--json"], env=_clean_environment())
    report = json.loads(answer)
    engines = {engine["name"]: engine["status"] for engine in report["engines"]}
    assert engines["onnxruntime"] == "ready"
    assert engines["torch"] == "missing"
    assert report["native_kernels"]["built"]
    assert "train" in {missing["extra"] for missing in report["missing_extras"]}


def test_a_verb_that_needs_torch_names_the_extra_there(environment: Path) -> None:
    command = [str(environment / "bin" / "boxwright"), "models"]
    answer = subprocess.run(command, capture_output=True, text=True, env=_clean_environment(), check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.endswith("run: pip install 'boxwright[export]'\n")
    assert answer.stderr.count("\n") == 1


def _write_model_and_picture(directory: Path) -> tuple[Path, Path]:
    """The colour cells model, and a picture with a red and a green cell far from each other."""
    model, picture = directory / "cells.onnx", directory / "cells.png"
    model.write_bytes(colour_cells_onnx().SerializeToString())
    image = np.zeros((48, 64, 3), np.uint8)
    image[8:16, 8:16, 2] = 255
    image[32:40, 40:48, 1] = 255
    cv2.imwrite(str(picture), image)
    return model, picture


def _closure(declared: list[str], extras: tuple[str, ...]) -> set[str]:
    """The names of all packages that the declared requirements bring, with those of the extras."""
    names: set[str] = set()
    waiting = [(requirement, extra) for requirement in declared for extra in ("", *extras)]
    while waiting:
        text, extra = waiting.pop()
        requirement = requirements.Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name in names:
            continue
        try:
            needed = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            pytest.fail(f"{requirement.name} is needed and not installed here: run make install")
        names.add(requirement.name)
        waiting += [(entry, inner) for entry in needed for inner in ("", *requirement.extras)]
    return names


def _link(name: str, site_packages: Path) -> None:
    """Link everything that a package has installed at the top of its site-packages."""
    package = distribution(name)
    for top in sorted({path.parts[0] for path in package.files or []} - {".."}):
        source, target = Path(str(package.locate_file(top))).resolve(), site_packages / top
        if top != "__pycache__" and not target.exists():
            target.symlink_to(source)


def _python(environment: Path, program: str, *arguments: str) -> str:
    return _run([str(environment / "bin" / "python"), "-c", program, *arguments], env=_clean_environment())


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert answer.returncode == 0, f"{command} ended with {answer.returncode}:\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout
