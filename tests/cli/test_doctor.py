"""`boxwright doctor`: the machine and the installation as they are, and a data set's faults by file."""

import importlib.util
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from boxwright.cli import _installation as installation
from boxwright.cli.main import main
from boxwright.runtimes.backend import backend_names

REPOSITORY = Path(__file__).resolve().parents[2]
# Where the name of a package and of the module that it brings differ by more than a hyphen.
MODULE_OF_PACKAGE = {
    "mlcommons-loadgen": "mlperf_loadgen",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "cuda-bindings": "cuda.bindings",
}


def declared_extras() -> dict[str, set[str]]:
    """The modules that each extra of pyproject.toml brings."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {
        extra: {re.split(r"[<>=!;\[ ]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
        if extra not in ("all", "dev")
    }
    return {
        extra: {MODULE_OF_PACKAGE.get(package, package.replace("-", "_")) for package in packages}
        for extra, packages in names.items()
    }


def test_the_table_of_extras_is_that_of_the_package() -> None:
    assert {extra: set(modules) for extra, (_, modules) in installation.EXTRAS.items()} == declared_extras()


def test_json_names_engines_cpu_and_missing_extras(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert set(report) == {"version", "native_kernels", "machine", "engines", "missing_extras"}
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == set(backend_names())
    onnxruntime = engines["onnxruntime"]
    assert onnxruntime["status"] == "ready"
    assert onnxruntime["version"] == version("onnxruntime")
    assert "CPU" in onnxruntime["devices"]
    assert engines["torch"]["status"] == ("installed" if importlib.util.find_spec("torch") else "missing")
    assert report["machine"]["num_cores"] >= 1
    assert isinstance(report["machine"]["gpus"], list)
    for missing in report["missing_extras"]:
        assert missing["modules"]
        assert missing["install"] == f"pip install 'boxwright[{missing['extra']}]'"


def test_text_says_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert f"engine onnxruntime: ready {version('onnxruntime')}" in out
    assert "compiled kernels: " in out
    assert "\nCPU: " in out


def test_a_missing_engine_names_its_extra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(installation, "_is_there", lambda module: module not in ("openvino", "torch"))
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert "engine openvino: missing (pip install 'boxwright[openvino]')" in out
    assert "to run and write OpenVINO models: pip install 'boxwright[openvino]'" in out
    assert "to train a detector: pip install 'boxwright[train]' (brings what is missing: torch)" in out


def test_a_broken_engine_says_why(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    broken = ModuleType("onnxruntime")  # an import that stopped half-way leaves a module without its contents
    broken.__spec__ = sys.modules["json"].__spec__
    monkeypatch.setitem(sys.modules, "onnxruntime", broken)
    assert main(["doctor", "--json"]) == 0
    engines = {engine["name"]: engine for engine in json.loads(capfd.readouterr().out)["engines"]}
    assert engines["onnxruntime"]["status"] == "broken"
    assert "__version__" in engines["onnxruntime"]["problem"]


@pytest.mark.parametrize(
    ("module", "verb", "extra"),
    [
        ("torch", "train", "train"),
        ("torch", "models", "export"),
        ("torch.nn", "export", "export"),
        ("onnx", "calibrate", "int8"),
        ("onnx", "export", "export"),
        ("matplotlib", "bench", "bench"),
        ("supervision", "predict", "viz"),
        ("nonsense", "train", None),
    ],
)
def test_the_extra_that_brings_a_module(module: str, verb: str, extra: str | None) -> None:
    assert installation.extra_that_brings(module, verb=verb) == extra


def test_clean_data_ends_well(shapes_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(shapes_dir), "--json"]) == 0
    splits = {split["split"]: split for split in json.loads(capfd.readouterr().out)["splits"]}
    assert {name: split["num_images"] for name, split in splits.items()} == {"train": 24, "val": 16, "test": 4}
    assert all(split["problems"] == [] for split in splits.values())


def test_faulty_data_is_named_by_file(shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "faulty"
    shutil.copytree(shapes_dir, copy)
    image = sorted(path for path in copy.rglob("*") if path.suffix in (".jpg", ".png") and "val" in str(path))[0]
    image.write_bytes(image.read_bytes()[:200])
    assert main(["doctor", "--data", str(copy), "--split", "val", "--json"]) == 3
    captured = capfd.readouterr()
    (split,) = json.loads(captured.out)["splits"]
    assert split["num_images"] == 15
    (problem,) = split["problems"]
    assert problem["kind"] == "undecodable_image"
    assert problem["file"].endswith(image.name)
    assert captured.err.splitlines()[-1] == f"boxwright: {copy}: 1 problem found, named above with its file"

    assert main(["doctor", "--data", str(copy)]) == 3
    captured = capfd.readouterr()
    assert f"{problem['file']}: undecodable_image" in captured.out


def test_real_faults_of_bccd(shared_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(shared_dir / "data" / "bccd"), "--json"]) == 3
    splits = {split["split"]: split for split in json.loads(capfd.readouterr().out)["splits"]}
    files = {name: {problem["file"] for problem in split["problems"]} for name, split in splits.items()}
    assert files["train"] == {"Annotations/BloodImage_00343.xml"}
    assert files["val"] == {"Annotations/BloodImage_00338.xml"}
    assert files["test"] == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--data", "."], "expected a data set's folder"),
    ],
)
def test_no_data_set_at_all(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_an_unknown_split_names_those_that_there_are(shapes_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(shapes_dir), "--split", "nope"]) == 2
    assert "train" in capfd.readouterr().err
