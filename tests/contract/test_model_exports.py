"""What every detector family must keep on its way to a box: the same detections in every form, on every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from agreement import assert_agrees
from boxwright.bench.accuracy import evaluate
from boxwright.calibration import calibrate
from boxwright.core.detections import Detections
from boxwright.core.images import read_image
from boxwright.core.kernels import decode_nms
from boxwright.data import Dataset
from boxwright.export import ExportOptions, export
from boxwright.models.common.saving import save_checkpoint
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.torch import TorchBackend
from family_models import TrainedFamily, every_family
from tolerances import REAL_MODEL_BOXES, REAL_MODEL_SCORES

# High enough that a detection is one, low enough that there are many.
CONF = 0.05


def conf_of(trained: TrainedFamily) -> float:
    """The root of it where a score is one, or all of an empty image would be detections, each as good as the next."""
    return CONF**0.5 if trained.loaded.manifest().decode.score_combination == "sqrt" else CONF


# Each form, and what it is made from: a checkpoint, or an export without NMS.
SOURCES: dict[Literal["graph", "plugin", "none"], str] = {"plugin": "m.pt", "none": "m.pt", "graph": "none.onnx"}
CASES = [
    ("graph", "onnxruntime"),
    ("plugin", "onnxruntime"),
    ("none", "onnxruntime"),
    ("graph", "openvino"),
    ("plugin", "openvino"),
    ("none", "openvino"),
]

Trained = Callable[[str], TrainedFamily]
Exported = Callable[[str], Path]
OpenForm = Callable[[str, str, str, float], Detector]


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gives a folder with a trained family as m.pt, graph.onnx, plugin.onnx and none.onnx, of any batch size."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        loaded = trained(family).loaded
        save_checkpoint(folder / "m.pt", loaded.module.state_dict(), loaded.manifest())
        for nms, source in SOURCES.items():
            export(folder / source, folder / f"{nms}.onnx", options=ExportOptions(nms=nms, dynamic=True))
        return folder

    return cache(make)


@pytest.fixture(scope="session")
def images(eight_images: Dataset) -> list[NDArray[np.uint8]]:
    """Images with many objects, of unlike sizes: one as it is, a wide one, a tall one, and one without objects."""
    first, second, third = (read_image(sample.image_path) for sample in eight_images.samples[:3])
    wide = np.concatenate([second, third], axis=1)
    return [first, wide[:, :200], np.concatenate([third, first], axis=0)[20:], np.full((90, 131, 3), 114, np.uint8)]


@pytest.fixture
def open_form(exported: Exported, request: pytest.FixtureRequest) -> OpenForm:
    """Opens a family's file of an NMS form on an engine, which for a node of ours needs its extension."""

    def open_(family: str, nms: str, backend: str, conf: float) -> Detector:
        if (nms, backend) == ("plugin", "openvino"):
            request.getfixturevalue("openvino_extension")
        return Detector(exported(family) / f"{nms}.onnx", backend=backend, conf=conf)

    return open_


def reference_detections(trained: TrainedFamily, images: Sequence[NDArray[np.uint8]], conf: float) -> list[Detections]:
    manifest = trained.loaded.manifest()
    with Detector.from_backend(
        TorchBackend.from_module(trained.loaded.module, manifest), manifest, conf=conf
    ) as detector:
        return [detector(image) for image in images]


def assert_same(found: Detections, expected: Detections, where: str) -> None:
    """The same objects at the same places; those that rank within a rounding of each other may change places."""
    assert len(found) == len(expected), where
    if len(expected) == 0:
        return
    np.testing.assert_allclose(found.scores, expected.scores, atol=REAL_MODEL_SCORES, err_msg=where)
    distances = np.abs(found.boxes_xyxy[:, None] - expected.boxes_xyxy[None]).max(axis=2)  # (N, N) pixels
    distances[found.class_ids[:, None] != expected.class_ids[None]] = np.inf
    distances[np.abs(found.scores[:, None] - expected.scores[None]) > REAL_MODEL_SCORES] = np.inf
    partners = distances.argmin(axis=1)
    assert len(set(partners.tolist())) == len(expected), where
    np.testing.assert_array_equal(found.class_ids, expected.class_ids[partners], err_msg=where)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy[partners], atol=REAL_MODEL_BOXES, err_msg=where)


@every_family
@pytest.mark.parametrize(("nms", "backend"), CASES)
def test_same_detections_as_torch(
    family: str,
    nms: str,
    backend: str,
    trained: Trained,
    open_form: OpenForm,
    images: list[NDArray[np.uint8]],
) -> None:
    conf = conf_of(trained(family))
    wanted = reference_detections(trained(family), images, conf)
    assert sum(len(detections) for detections in wanted) >= 8
    with open_form(family, nms, backend, conf) as detector:
        for number, (image, expected) in enumerate(zip(images, wanted, strict=True)):
            assert_same(detector(image), expected, f"image {number}")


@every_family
@pytest.mark.parametrize(("nms", "backend"), CASES)
def test_a_batch_gives_what_its_images_give(
    family: str, nms: str, backend: str, open_form: OpenForm, images: list[NDArray[np.uint8]]
) -> None:
    with open_form(family, nms, backend, CONF) as detector:
        alone = [detector(image) for image in images]
        for number, (together, expected) in enumerate(zip(detector(images[:3]), alone[:3], strict=True)):
            assert_same(together, expected, f"image {number}")


@every_family
def test_openvino_ir_gives_what_the_onnx_file_gives(
    family: str, trained: Trained, exported: Exported, images: list[NDArray[np.uint8]]
) -> None:
    folder, conf = exported(family), conf_of(trained(family))
    export(folder / "graph.onnx", folder / "m_openvino_model", options=ExportOptions(format="openvino", dynamic=True))
    with (
        Detector(folder / "graph.onnx", backend="onnxruntime", conf=conf) as onnx_detector,
        Detector(folder / "m_openvino_model", conf=conf) as detector,
    ):
        for number, image in enumerate(images):
            assert_same(detector(image), onnx_detector(image), f"image {number}")


@every_family
@pytest.mark.parametrize("conf", [0.3, 0.001])
def test_kernel_decodes_as_the_reference(
    family: str, conf: float, trained: Trained, images: list[NDArray[np.uint8]]
) -> None:
    loaded = trained(family).loaded
    manifest = loaded.manifest()
    with TorchBackend.from_module(loaded.module, manifest) as backend:
        tensors = np.stack([loaded.preprocess.apply(image)[0] for image in images[:3]])
        heads = backend.run({"images": tensors})
    spec = manifest.decode
    inputs = {name: heads.get(name) for name in ("box_regression", "class_logits", "objectness")}
    inputs["priors"] = heads.get("priors", spec.priors())
    inputs["image_size_hw"] = heads.get("image_size_hw", np.array([loaded.size_hw] * len(tensors), dtype=np.float32))
    arguments = {**inputs, "attributes": spec.attributes(), "score_threshold": conf, "iou_threshold": 0.6}
    found = decode_nms(**arguments)
    assert found.num_detections.sum() >= 3
    assert_agrees(found, **arguments)


@pytest.fixture(scope="session")
def calibrated(exported: Exported, eight_images_dir: Path) -> Exported:
    """Gives a family's INT8 file."""

    def make(family: str) -> Path:
        folder = exported(family)
        result = calibrate(folder / "graph.onnx", eight_images_dir, folder / "m_int8.onnx", measure=False)
        assert result.num_quantized >= 1
        return result.path

    return cache(make)


@every_family
@pytest.mark.filterwarnings("ignore:12 calibration images")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_finds_what_float_finds(family: str, backend: str, calibrated: Exported, eight_images: Dataset) -> None:
    path = calibrated(family)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    with Detector(path, backend=backend, precision="int8", conf=0.01) as detector:
        accuracy = evaluate(detector, eight_images)
    assert accuracy.map50 is not None and accuracy.map50 >= 0.8, accuracy
