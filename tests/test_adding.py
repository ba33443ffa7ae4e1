"""docs/adding.md, followed step by step in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import boxwright

PAGE = Path(__file__).parents[1] / "docs" / "adding.md"
_BLOCK = re.compile(r"```python\n# src/boxwright/(\S+)\n(.*?)```", re.DOTALL)

USE_THEM = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]  # use the copy
import numpy as np, onnx_ir as ir, torch
from pathlib import Path
import boxwright
from boxwright import Detector
from boxwright.export import ExportOptions, export
from boxwright.export.passes import find_passes
from boxwright.models import Targets, build_model, list_models
from boxwright.models.common.loading import LoadedModel
from boxwright.models.common.saving import save_checkpoint
from boxwright.runtimes.backend import backend_names

assert str(Path(boxwright.__file__).parent) == sys.argv[1]
assert "tinydet" in [info.variant for info in list_models()]
torch.manual_seed(0)
model = build_model("tinydet", num_classes=3).train()
targets = Targets(boxes_xyxy=[torch.tensor([[8.0, 8.0, 60.0, 70.0]])], class_ids=[torch.tensor([1])])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
image = torch.rand(1, 3, 64, 96)
losses = []
for _ in range(40):
    loss = model.training_loss(image, targets)["loss"]
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.3 * losses[0], losses

size_hw = (64, 96)
loaded = LoadedModel(module=model.eval(), family="tinydet", variant="tinydet", class_names=("a", "b", "c"),
                     preprocess=model.default_preprocess(size_hw), size_hw=size_hw)
save_checkpoint("tiny.pt", model.state_dict(), loaded.manifest())
result = export("tiny.pt", "tiny.onnx", options=ExportOptions(nms="none"))
assert result.verification.proven and result.verification.matched_fraction > 0.98, result.verification

assert "reference" in backend_names()
picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
with Detector("tiny.onnx", backend="reference", conf=0.005) as slow, Detector("tiny.onnx", conf=0.005) as fast:
    assert slow.backend.name == "reference"
    ours, theirs = slow(picture), fast(picture)
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, atol=1e-2)

from onnx import TensorProto, helper
steps = (("Relu", "x", "y"), ("Relu", "y", "z"), ("Neg", "z", "out"))
nodes = [helper.make_node(kind, [source], [target]) for kind, source, target in steps]
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
graph = ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value("out")])))
assert find_passes()["drop_double_relu"].run(graph) is True
assert [node.op_type for node in graph.graph] == ["Relu", "Neg"]
print("followed")
"""


@pytest.fixture(scope="module")
def copy_of_the_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adding")
    package = root / "boxwright"
    shutil.copytree(Path(boxwright.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [Path(name).parent.as_posix() for name, _ in blocks] == ["models", "runtimes", "export/passes"]
    for name, code in blocks:
        assert not (package / name).exists(), "the page must add files, not replace them"
        (package / name).write_text(code, encoding="utf-8")
    return root


def test_the_files_of_the_page_are_all_that_is_needed(copy_of_the_package: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy_of_the_package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE_THEM, str(copy_of_the_package / "boxwright")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("followed")


def test_the_files_of_the_page_follow_the_house_style(copy_of_the_package: Path) -> None:
    names = [copy_of_the_package / "boxwright" / name for name, _ in _BLOCK.findall(PAGE.read_text(encoding="utf-8"))]
    settings = PAGE.parents[1] / "pyproject.toml"
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(settings), *map(str, names)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
