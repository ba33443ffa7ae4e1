"""Models that are unlike the usual one: a pixel mask, pixels as input, priors from the graph, half precision."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from boxwright.core.decode_spec import AnchorDeltas, Boxes, DecodeSpec, NmsSpec, Queries
from boxwright.core.errors import ManifestError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.runtimes.backend import TensorSpec
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.synchronous import SynchronousBackend
from models_for_tests import save_colour_cells

SHORTEST_EDGE = Preprocess(
    size_hw=None, resize="shortest_edge", shortest_edge=40, max_size=60, divisor=8, pixel_mask=True
)
STRETCH = Preprocess(size_hw=(40, 60), resize="stretch")


class ScriptedBackend(SynchronousBackend):
    """Gives the outputs that it was told to, whatever comes in, and remembers what came."""

    name, device, precision, manifest_json = "scripted", "cpu", "fp32", None

    def __init__(self, inputs: dict[str, TensorSpec], outputs: dict[str, NDArray[Any]]) -> None:
        super().__init__()
        self.inputs, self._outputs = inputs, outputs
        self.outputs = {
            name: TensorSpec(shape=(None, *array.shape[1:]), dtype=array.dtype) for name, array in outputs.items()
        }
        self.seen: list[Mapping[str, NDArray[Any]]] = []

    @classmethod
    def open(cls, path: Any, *, device: str = "cpu", precision: str | None = None, num_threads: int = 0) -> Any:
        raise NotImplementedError

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.seen.append(inputs)
        return self._outputs


def _spec(shape: tuple[int | None, ...], dtype: type = np.float32) -> TensorSpec:
    return TensorSpec(shape=shape, dtype=np.dtype(dtype))


def _manifest(decode: DecodeSpec, preprocess: Preprocess, **changes: Any) -> Manifest:
    names = tuple(f"class {index}" for index in range(decode.num_classes))
    fields: dict[str, Any] = {"family": "f", "variant": "v", "stage": "raw", "class_names": names}
    return Manifest(**{**fields, **changes}, preprocess=preprocess, decode=decode)


def _heads(boxes: list[list[float]], logits: list[list[float]], dtype: type = np.float32) -> dict[str, NDArray[Any]]:
    return {
        "box_regression": np.array([boxes], dtype),
        "class_logits": np.array([logits], dtype),
    }


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
def test_pixel_mask(dtype: type) -> None:
    inputs = {"images": _spec((None, 3, None, None)), "pixel_mask": _spec((None, None, None), dtype)}
    boxes = [[[0.5, 0.5, 1.0, 1.0]], [[0.5, 0.5, 1.0, 1.0]]]
    heads = {"box_regression": np.array(boxes, np.float32), "class_logits": np.full((2, 1, 1), 5, np.float32)}
    heads["priors"] = np.array([[[0, 0, 48, 40]], [[0, 0, 48, 40]]], np.float32)
    backend = ScriptedBackend(inputs, heads)
    detector = Detector.from_backend(backend, _manifest(Queries(num_classes=1, num_queries=1), SHORTEST_EDGE))
    images = [np.zeros((80, 80, 3), np.uint8), np.zeros((80, 100, 3), np.uint8)]  # resized to 40x40 and 40x50
    first, second = detector(images)
    mask = backend.seen[0]["pixel_mask"]
    assert mask.dtype == dtype
    assert mask.shape == (2, 40, 56)
    assert backend.seen[0]["images"].shape == (2, 3, 40, 56)
    assert mask[0, :, :40].all()
    assert not mask[0, :, 40:].any()
    assert mask[1, :, :50].all()
    assert not mask[1, :, 50:].any()
    np.testing.assert_allclose(first.boxes_xyxy, [[0, 0, 80, 80]])  # 48 of 40 pixels, clipped
    np.testing.assert_allclose(second.boxes_xyxy, [[0, 0, 96, 80]])


def test_a_missing_pixel_mask_is_named() -> None:
    backend = ScriptedBackend({"images": _spec((None, 3, None, None))}, _heads([[0, 0, 1, 1]], [[1]]))
    with pytest.raises(ManifestError, match="pixel_mask"):
        Detector.from_backend(backend, _manifest(Queries(num_classes=1, num_queries=1), SHORTEST_EDGE))


def test_a_graph_that_takes_pixels() -> None:
    backend = ScriptedBackend(
        {"images": _spec((None, None, None, 3), np.uint8)}, _heads([[6.0, 4.0, 30.0, 20.0]], [[5.0]])
    )
    manifest = _manifest(Boxes(num_classes=1, nms=NmsSpec()), STRETCH, stage="boxes", input_kind="pixels")
    detector = Detector.from_backend(backend, manifest)
    images = [np.full((80, 120, 3), 9, np.uint8), np.full((20, 30, 3), 7, np.uint8)[:, ::-1]]
    found = detector(images)
    assert [entry["images"].shape for entry in backend.seen] == [(1, 80, 120, 3), (1, 20, 30, 3)]
    assert all(entry["images"].dtype == np.uint8 for entry in backend.seen)
    np.testing.assert_allclose(found[0].boxes_xyxy, [[12, 8, 60, 40]])
    np.testing.assert_allclose(found[1].boxes_xyxy, [[3, 2, 15, 10]])


def test_half_precision_outputs() -> None:
    heads = _heads([[6.0, 4.0, 30.0, 20.0], [1, 1, 5, 5]], [[5.0], [-5.0]], np.float16)
    backend = ScriptedBackend({"images": _spec((1, 3, 40, 60))}, heads)
    found = Detector.from_backend(backend, _manifest(Boxes(num_classes=1, nms=NmsSpec()), STRETCH, stage="boxes"))(
        np.zeros((40, 60, 3), np.uint8)
    )
    np.testing.assert_allclose(found.boxes_xyxy, [[6, 4, 30, 20]])


def test_clipping_before_nms_uses_the_networks_input() -> None:
    """Clipped to 60x40 the second box equals the first and is suppressed; unclipped their IoU is 0.5."""
    heads = _heads([[0, 0, 60, 40], [0, 0, 120, 40]], [[5.0], [4.0]])
    for clip, count in ((True, 1), (False, 2)):
        backend = ScriptedBackend({"images": _spec((1, 3, 40, 60))}, heads)
        manifest = _manifest(Boxes(num_classes=1, nms=NmsSpec(), clip_to_image=clip), STRETCH, stage="boxes")
        assert len(Detector.from_backend(backend, manifest)(np.zeros((40, 60, 3), np.uint8))) == count


def test_softmax_with_background() -> None:
    decode = AnchorDeltas(num_classes=2, score_activation="softmax", background_class=0, nms=NmsSpec())
    heads = _heads([[0, 0, 0, 0]], [[0.0, 0.0, 3.0]])
    heads["priors"] = np.array([[10, 10, 30, 20]], np.float32)
    backend = ScriptedBackend({"images": _spec((1, 3, 40, 60))}, heads)
    found = Detector.from_backend(backend, _manifest(decode, STRETCH))(np.zeros((40, 60, 3), np.uint8))
    np.testing.assert_allclose(found.boxes_xyxy, [[10, 10, 30, 20]], atol=1e-5)
    assert found.class_ids.tolist() == [1]  # counted without the background
    assert found.scores[0] == pytest.approx(np.exp(3) / (np.exp(3) + 2), abs=1e-6)


def test_detections_in_other_integer_types() -> None:
    outputs = {
        "num_detections": np.array([[1]], np.int64),
        "boxes": np.array([[[6, 4, 30, 20], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.5, 0.0]], np.float32),
        "class_ids": np.array([[0, -1]], np.int64),
    }
    backend = ScriptedBackend({"images": _spec((1, 3, 40, 60))}, outputs)
    found = Detector.from_backend(backend, _manifest(Boxes(num_classes=1, nms=NmsSpec()), STRETCH, stage="detections"))(
        np.zeros((40, 60, 3), np.uint8)
    )
    assert found.class_ids.dtype == np.int32
    np.testing.assert_allclose(found.boxes_xyxy, [[6, 4, 30, 20]])


@pytest.mark.parametrize(
    ("inputs", "heads", "message"),
    [
        ({"image": (1, 3, 40, 60)}, _heads([[0, 0, 1, 1]], [[1]]), "inputs of images"),
        ({"images": (1, 3, 40, 60), "length": (1,)}, _heads([[0, 0, 1, 1]], [[1]]), "got images, length"),
        ({"images": (1, 3, 40)}, _heads([[0, 0, 1, 1]], [[1]]), "4 dimensions"),
        ({"images": (1, 3, 40, 60)}, _heads([[0, 0, 1, 1]], [[1, 2]]), "1 classes, got 2"),
        ({"images": (1, 3, 40, 60)}, _heads([[0, 0, 1, 1]] * 3, [[1]] * 3), "2 anchors, got 3"),
        ({"images": (1, 3, 40, 60)}, {"class_logits": np.zeros((1, 2, 1), np.float32)}, "outputs box_regression"),
    ],
)
def test_models_that_their_manifest_does_not_describe(
    inputs: dict[str, tuple[int, ...]], heads: dict[str, NDArray[Any]], message: str
) -> None:
    backend = ScriptedBackend({name: _spec(shape) for name, shape in inputs.items()}, heads)
    decode = Queries(num_classes=1, num_queries=2, scale_wh=(60.0, 40.0))
    with pytest.raises(ManifestError, match=message):
        Detector.from_backend(backend, _manifest(decode, STRETCH))


def test_predicting_needs_little(tmp_path: Path) -> None:
    """A process that predicts with ONNX Runtime loads nothing that a small box should not need."""
    pytest.importorskip("onnxruntime")
    path = save_colour_cells(tmp_path / "m.onnx")
    program = (
        "import sys, numpy; from boxwright import Detector\n"
        f"Detector({str(path)!r})(numpy.zeros((48, 64, 3), 'uint8'))\n"
        "unwanted = {'torch', 'onnx', 'openvino', 'PIL', 'matplotlib', 'scipy', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not unwanted, unwanted"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_openvino_says_that_it_lacks_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    # An engine and a cache of its own: others may have the extension.
    monkeypatch.setattr("boxwright.runtimes.openvino._shared_core", openvino.Core)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = onnx.load(save_colour_cells(tmp_path / "m.onnx"))
    model.graph.node[0].op_type, model.graph.node[0].domain = "DecodeNMS", "boxwright"
    model.opset_import.append(onnx.helper.make_opsetid("boxwright", 1))
    onnx.save(model, tmp_path / "plugin.onnx")
    with pytest.raises(UnsupportedError, match="doctor --build-plugins") as caught:
        Detector(tmp_path / "plugin.onnx", backend="openvino")
    assert "\n" not in str(caught.value)
