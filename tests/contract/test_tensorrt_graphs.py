"""What becomes of every family's export on its way to TensorRT, as far as that can be seen without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from boxwright.core.errors import UnsupportedError
from boxwright.core.images import read_image
from boxwright.data import Dataset
from boxwright.export import ExportOptions, export, verify
from boxwright.export.float_layers import find_float_layers
from boxwright.export.half_precision import half_candidates, to_half, with_types
from boxwright.export.onnx_files import read_manifest, set_manifest, write_onnx
from boxwright.export.tensorrt_candidates import candidates_that_fit
from boxwright.export.tensorrt_graph import for_parser
from boxwright.export.tensorrt_limits import limits_of
from boxwright.models.common.saving import save_checkpoint
from boxwright.runtimes.detector import Detector
from family_models import TrainedFamily, every_family
from tensorrt_operators import VERSIONS, complaints

Trained = Callable[[str], TrainedFamily]
Exported = Callable[[str], Path]
CONF = 0.1


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gives a folder with a trained family as m.pt and graph.onnx, of any batch size."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{family}_tensorrt")
        loaded = trained(family).loaded
        save_checkpoint(folder / "m.pt", loaded.module.state_dict(), loaded.manifest())
        # As the export of an engine chooses, where NMS takes more candidates than TensorRT sorts.
        candidates = candidates_that_fit(loaded.manifest().decode, limits_of("8.5"))
        options = ExportOptions(dynamic=True, max_candidates=candidates)
        export(folder / "m.pt", folder / "graph.onnx", options=options)
        return folder

    return cache(make)


def run(model: ir.Model, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    thresholds = {"score_threshold": CONF, "iou_threshold": 0.6}
    return session.run(
        None, {"images": images} | {name: np.array(value, np.float32) for name, value in thresholds.items()}
    )


@every_family
def test_the_parser_reads_every_operator(family: str, exported: Exported, eight_images: Dataset) -> None:
    """The lists of TensorRT's ONNX parsers hold all that is written for them, and it computes the same."""
    model = ir.load(exported(family) / "graph.onnx")
    preprocess = read_manifest(model, family).preprocess
    images = np.stack([preprocess.apply(read_image(sample.image_path))[0] for sample in eight_images.samples[:2]])
    wanted = run(model, images)
    assert wanted[0].sum() >= 2
    for version in VERSIONS:
        written = for_parser(model, limits_of(version), source=family)
        assert complaints(written, version) == []
        for name, got, expected in zip(
            ("num", "boxes", "scores", "classes"), run(written, images), wanted, strict=True
        ):
            np.testing.assert_allclose(got, expected, atol=1e-3, rtol=1e-5, err_msg=f"{version} {name}")


@every_family
@pytest.mark.full
def test_half_precision_detects_the_same(
    family: str, exported: Exported, eight_images: Dataset, tmp_path: Path
) -> None:
    """The graph whose types are half precision, a few layers perhaps in float32, as an engine is built from it."""
    path = exported(family) / "graph.onnx"
    model = with_types(ir.load(path))
    manifest = read_manifest(model, family)
    images = [read_image(sample.image_path) for sample in eight_images.samples]

    def trial(names: frozenset[str]) -> verify.VerificationRecord:
        halved, _ = to_half(model, names)
        onnx.checker.check_model(ir.to_proto(halved), full_check=True)
        set_manifest(halved, manifest)
        write_onnx(halved, tmp_path / "half.onnx")
        record = verify.compare(
            lambda conf: Detector(path, backend="onnxruntime", conf=max(conf, CONF)),
            lambda conf: Detector(tmp_path / "half.onnx", backend="onnxruntime", conf=max(conf, CONF)),
            images,
            manifest.preprocess,
            reference_name="float32",
            max_detections=manifest.decode.max_detections,
        )
        return replace(record, proven=True)

    candidates = half_candidates(model)
    assert len(candidates) >= 20
    in_float = find_float_layers(candidates, trial)
    assert len(in_float) <= len(candidates) // 3, in_float


@pytest.mark.parametrize("version", VERSIONS)
def test_too_many_candidates_are_named(version: str) -> None:
    sort = onnx.helper.make_node("TopK", ["images", "k"], ["values", "places"], name="sort")
    graph = onnx.helper.make_graph(
        [sort],
        "sort",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 9000])],
        [onnx.helper.make_tensor_value_info("values", onnx.TensorProto.FLOAT, [1, 5000])],
        [onnx.numpy_helper.from_array(np.array([5000]), "k")],
    )
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    assert complaints(model, version) == ["TopK sort: k is 5000, at most 3840 wanted"]
    with pytest.raises(UnsupportedError, match=r"layer sort \(TopK\).* got 5000; export with --max-candidates"):
        for_parser(model, limits_of(version), source="m.onnx")
