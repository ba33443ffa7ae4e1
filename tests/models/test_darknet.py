"""Darknet's files and layers, held to OpenCV's reader on the same file and input."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from boxwright.bench.accuracy import evaluate
from boxwright.core.errors import CheckpointError, InputError
from boxwright.data import load_dataset
from boxwright.export import ExportOptions, export
from boxwright.models import build_model, load_model
from boxwright.models.common.darknet_files import parse_cfg, write_cfg
from boxwright.models.common.darknet_network import DarknetNetwork, _stored_tensors
from boxwright.models.common.loading import default_size_hw, read_weights
from boxwright.models.common.saving import save_checkpoint
from boxwright.models.darknet import VARIANTS, Darknet, build
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.torch import TorchBackend
from tolerances import OPENCV_MAP50

NUM_CLASSES = 3
NAMES = ("a", "b", "c")


def write_weights(network: DarknetNetwork, path: Path, seed: int = 0) -> None:
    """Random numbers that keep the activations in a sensible range."""
    generator = np.random.default_rng(seed)
    numbers = []
    for layer in network.layers:
        tensors = _stored_tensors(layer)
        for position, tensor in enumerate(tensors):
            is_scale_or_variance = len(tensors) == 5 and position in (1, 3)
            fan_in = tensor[0].numel() if tensor.ndim == 4 else 25
            values = generator.normal(0, fan_in**-0.5, tensor.numel())
            numbers.append(generator.uniform(0.8, 1.4, tensor.numel()) if is_scale_or_variance else values)
    header = np.array([0, 2, 5], dtype="<i4").tobytes() + np.array([0], dtype="<i8").tobytes()
    path.write_bytes(header + np.concatenate(numbers).astype("<f4").tobytes())


def network_files(folder: Path, cfg: str) -> Path:
    (folder / "net.cfg").write_text(cfg)
    write_weights(DarknetNetwork(parse_cfg(cfg, "net.cfg")), folder / "net.weights")
    return folder / "net.weights"


def opencv_head_inputs(weights: Path, images: np.ndarray) -> list[np.ndarray]:
    """What OpenCV computes before each [yolo] or [region] section."""
    net = cv2.dnn.readNetFromDarknet(str(weights.with_suffix(".cfg")), str(weights))
    names = list(net.getLayerNames())
    heads = [index for index, name in enumerate(names) if name.startswith(("yolo", "detection", "region"))]
    before = []
    for index in heads:
        convolutions = [name for name in names[:index] if name.startswith("conv_")]
        before.append(convolutions[-1])
    net.setInput(images)
    return list(net.forward(before))


def compare_with_opencv(weights: Path, size_hw: tuple[int, int]) -> None:
    images = np.random.default_rng(1).uniform(0, 1, (1, 3, *size_hw)).astype(np.float32)
    expected = opencv_head_inputs(weights, images)
    model = load_model(weights, class_names=NAMES).module
    assert isinstance(model, Darknet)
    with torch.no_grad():
        found = model.network(torch.from_numpy(images))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3)


SMALL = ["yolov2-tiny", "yolov3-tiny", "yolov4-tiny", "yolov4-pico"]
LARGE = [pytest.param(name, marks=pytest.mark.full) for name in ("yolov2", "yolov3", "yolov4")]


@pytest.mark.parametrize("variant", [*SMALL, *LARGE])
def test_variants_compute_what_opencv_computes(variant: str, tmp_path: Path) -> None:
    size_hw = (96, 160)
    compare_with_opencv(network_files(tmp_path, VARIANTS[variant].write_cfg(size_hw, NUM_CLASSES)), size_hw)


LAYERS = {
    "activations": "".join(
        f"[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\npad=1\nactivation={name}\n"
        for name in ("leaky", "mish", "swish", "logistic", "linear", "relu")
    ),
    "groups and explicit padding": "[convolutional]\nfilters=9\nsize=3\npadding=1\nactivation=leaky\n"
    "[convolutional]\nfilters=18\ngroups=3\nsize=5\npad=1\nactivation=leaky\n",
    "pools": "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=linear\n[maxpool]\nsize=2\nstride=1\n"
    "[maxpool]\nsize=5\nstride=1\n[maxpool]\nsize=3\nstride=2\n[upsample]\nstride=2\n",
    "reorg": "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=linear\n[reorg]\nstride=2\n[upsample]\nstride=2\n",
    "route groups": "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n[route]\nlayers=-1\ngroups=2\n"
    "group_id=1\n[convolutional]\nfilters=4\nsize=1\nactivation=leaky\n[route]\nlayers=-1,-2,0\n",
    "shortcut": "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n[convolutional]\nfilters=8\nsize=1\n"
    "activation=leaky\n[shortcut]\nfrom=-2\nactivation=leaky\n",
    "squeeze and excite": "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n[avgpool]\n[convolutional]\n"
    "filters=8\nsize=1\nactivation=logistic\n[scale_channels]\nfrom=0\nactivation=linear\n",
    "dropout": "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n[dropout]\nprobability=0.5\n",
}


def one_head(body: str) -> str:
    return (
        f"[net]\nwidth=32\nheight=32\nchannels=3\n{body}[convolutional]\nfilters=16\nsize=1\nactivation=linear\n"
        "[yolo]\nmask=0,1\nanchors=4,4, 8,8\nclasses=3\nnum=2\n"
    )


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_opencv_computes(name: str, tmp_path: Path) -> None:
    compare_with_opencv(network_files(tmp_path, one_head(LAYERS[name])), (32, 32))


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_a_real_network_computes_what_opencv_computes(name: str, shared_dir: Path) -> None:
    weights = shared_dir / "weights" / f"{name}.weights"
    images = np.random.default_rng(1).uniform(0, 1, (1, 3, 320, 320)).astype(np.float32)
    net = cv2.dnn.readNetFromDarknet(str(weights.with_name(f"{name}.cfg")), str(weights))
    net.setInput(images)
    last = [layer for layer in net.getLayerNames() if layer.startswith("conv_")][-1]
    model = load_model(weights, class_names="coco")
    assert model.size_hw == (320, 320)
    with torch.no_grad():
        found = model.module.network(torch.from_numpy(images))[-1]
    np.testing.assert_allclose(found.numpy(), net.forward(last), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "conf", "map50"),
    [
        # OpenCV's [yolo] layer drops class scores up to 0.2 by itself, whatever threshold its caller asks for ...
        ("yolo-fastest-1.1", 0.2, 0.2431),
        ("yolo-fastest-1.1-xl", 0.2, 0.3311),
        # ... unless the .cfg says thresh=0.0005 in its [yolo] sections; then 0.005 is the caller's, and this is found.
        ("yolo-fastest-1.1", 0.005, 0.3172),
        ("yolo-fastest-1.1-xl", 0.005, 0.4007),
    ],
)
def test_a_real_network_finds_what_opencv_finds(name: str, conf: float, map50: float, shared_dir: Path) -> None:
    """AP50 on COCO images with the class rule, IoU 0.45 and the 300 detections of the independent measurement."""
    loaded = load_model(shared_dir / "weights" / f"{name}.weights", class_names="coco")
    manifest = loaded.manifest()
    backend = TorchBackend.from_module(loaded.module, manifest)
    with Detector.from_backend(backend, manifest, conf=conf, iou=0.45) as detector:
        accuracy = evaluate(detector, load_dataset(shared_dir / "data" / "coco-tiny", "val"))
    assert accuracy.map50 == pytest.approx(map50, abs=OPENCV_MAP50)


def test_an_exported_network_finds_the_same(tmp_path: Path, shared_dir: Path) -> None:
    """`boxwright export yolo-fastest-1.1-xl.weights --labels coco --nms graph`, with the .cfg found beside it."""
    weights = shared_dir / "weights" / "yolo-fastest-1.1-xl.weights"
    result = export(weights, tmp_path / "y.onnx", labels="coco", options=ExportOptions(nms="graph"))
    assert result.verification.proven
    with Detector(tmp_path / "y.onnx", conf=0.2, iou=0.45) as detector:
        accuracy = evaluate(detector, load_dataset(shared_dir / "data" / "coco-tiny", "val"))
    assert accuracy.map50 == pytest.approx(0.3311, abs=OPENCV_MAP50)


@pytest.mark.parametrize("change", [-4, 4])
def test_weights_of_another_length_are_refused(change: int, tmp_path: Path) -> None:
    weights = network_files(tmp_path, one_head(LAYERS["shortcut"]))
    content = weights.read_bytes()
    weights.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(CheckpointError, match=r"1 too (few|many)"):
        load_model(weights, class_names=NAMES)


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        ("", "begins with"),
        ("[convolutional]\nfilters=3\n", "begins with"),
        ("width=3\n", "key=value"),
        ("[net]\n[crnn]\n", r"crnn"),
        ("[net]\n[convolutional]\nfilters=8\n", "yolo"),
        (one_head("[convolutional]\nfilters=8\nactivation=swoosh\n"), "swoosh"),
        (one_head("[convolutional]\nfilters=x\n"), "filters"),
        (one_head("[route]\nlayers=1\n"), "before this one"),
        (one_head("[route]\nlayers=0\n"), "before this one"),
        (one_head("[route]\nlayers=\n"), "at least one layer"),
        (one_head("[shortcut]\nfrom=-5\n"), "before this one"),
        (one_head("").replace("filters=16", "filters=18"), "channels"),
        (one_head("").replace("anchors=4,4, 8,8", "anchors=4,4, 8"), "pairs"),
        (one_head("").replace("anchors=4,4, 8,8", "anchors=4,4, 8,eight"), "anchors"),
        (one_head("").replace("anchors=4,4, 8,8", ""), "pairs"),
        (one_head("").replace("classes=3", "classes=0"), "channels"),
        (one_head("") + "new_coords=1\n", "new_coords"),
        (one_head("[convolutional]\nfilters=8\nactivation=leaky\nxnor=1\n"), "no xnor"),
        (one_head("[maxpool]\nsize=2\nstride=2\nantialiasing=1\n"), "no antialiasing"),
        (one_head("[upsample]\nstride=-2\n"), "positive stride"),
        (one_head("[shortcut]\nfrom=-1\nweights_type=per_feature\n"), "before this one|without weights"),
        (one_head("[reorg]\nstride=2\n"), "multiple of 4"),
        (one_head("").replace("[yolo]", "[region]"), "softmax=1"),
        (one_head("[dropout]\nprobability=1\n"), "probability"),
        (one_head("").replace("mask=0,1", "mask=0,7"), "mask"),
        (one_head("").replace("num=2", "num=3"), "num"),
    ],
)
def test_a_cfg_that_makes_no_sense_is_named_with_its_line(cfg: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "net.cfg").write_text(cfg)
    (tmp_path / "net.weights").write_bytes(bytes(20))
    with pytest.raises(CheckpointError, match=named) as caught:
        load_model(tmp_path / "net.weights", class_names=NAMES)
    assert "\n" not in str(caught.value) and "net.cfg" in str(caught.value)


CONV = "[convolutional]\nfilters=8\nactivation=leaky\n"
DEEP = "[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=leaky\n"


@pytest.mark.parametrize(
    ("cfg", "section", "named"),
    [
        (one_head("[reorg]\nstride=0\n"), "5 [reorg]", "positive stride"),
        (one_head("[reorg]\nstride=-1\n"), "5 [reorg]", "positive stride"),
        (one_head(CONV + "size=3\ndilation=0\n"), "5 [convolutional]", "dilation 0"),
        (one_head(CONV + "size=3\npadding=-1\n"), "5 [convolutional]", "padding -1"),
        (one_head(CONV.replace("8", "999999999")), "5 [convolutional]", "filters of at most"),
        (one_head(CONV.replace("8", "9" * 30)), "5 [convolutional]", "whole number for filters"),
        (one_head(CONV + "stride=2147483647\n" + CONV), "1 [net]", "strides of at most"),
        (one_head("[maxpool]\nsize=2\npadding=4\n"), "5 [maxpool]", "padding 4"),
        (one_head("").replace("anchors=4,4, 8,8", "anchors=4,4, 8,nan"), "9 [yolo]", "anchors"),
        (one_head("").replace("anchors=4,4, 8,8", "anchors=4,4, 8,inf"), "9 [yolo]", "anchors"),
        (one_head("") + "scale_x_y=nan\n", "9 [yolo]", "scale_x_y"),
        (one_head("") + "iou_normalizer=-inf\n", "9 [yolo]", "iou_normalizer"),
        (one_head("").replace("channels=3", "channels=1"), "1 [net]", "channels=1"),
        (one_head("").replace("width=32", "width=0"), "1 [net]", "positive height and width"),
        (one_head(f"{CONV}{DEEP}[sam]\nfrom=0\n"), "14 [sam]", "strides"),
        (one_head(f"{CONV}[avgpool]\n[sam]\nfrom=0\n"), "9 [sam]", "strides"),
        (one_head(f"{CONV}{DEEP}[scale_channels]\nfrom=0\n"), "14 [scale_channels]", "strides"),
        # Geometry: the grid that comes out is not the one that the stride says.
        (
            one_head(CONV + "size=3\npad=0\n" + DEEP),
            "5 [convolutional]",
            "stride 1 says, got 30x32",
        ),
        (one_head(DEEP.replace("size=3", "size=2")), "5 [convolutional]", "got 17x18"),
        (one_head("[maxpool]\nsize=3\nstride=2\npadding=0\n"), "5 [maxpool]", "got 15x16"),
        (one_head(f"{CONV}size=3\n{CONV}[route]\nlayers=-1,-2\n"), "5 [convolutional]", "got 14x15"),
        (one_head(f"{CONV}{CONV}size=3\n[shortcut]\nfrom=-2\n"), "12 [shortcut]", "maps of 14x15, 16x17 pixels"),
        (one_head(f"{CONV}[avgpool]\n"), "13 [yolo]", "a grid before it"),
    ],
)
def test_values_and_geometry_that_make_no_sense_are_named_with_their_section(
    cfg: str, section: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "net.cfg").write_text(cfg)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "net.cfg", class_names=NAMES)
    message = str(caught.value)
    assert f"net.cfg:{section}" in message and named in message and "\n" not in message


def test_padding_that_is_made_up_for_later_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "net.cfg").write_text(one_head(f"{CONV}size=3\n{CONV}size=3\npadding=2\n"))
    assert load_model(tmp_path / "net.cfg", class_names=NAMES).variant == "net"


@pytest.mark.parametrize("normalised", [False, True])
def test_a_cfg_without_weights_expects_few_objects(normalised: bool, tmp_path: Path) -> None:
    cfg = one_head(CONV)
    if normalised:
        cfg = cfg.replace("filters=16", "filters=16\nbatch_normalize=1")
    (tmp_path / "net.cfg").write_text(cfg)
    last = build_model(str(tmp_path / "net.cfg"), num_classes=3).network.layers[-2]
    bias = (last[1] if normalised else last[0]).bias.detach().view(2, 8)
    assert torch.allclose(bias[:, 4].sigmoid(), torch.tensor(0.01)) and (bias[:, [0, 5]].sigmoid() > 0.1).all()
    write_weights(DarknetNetwork(parse_cfg(cfg, "net.cfg")), tmp_path / "net.weights")
    loaded = load_model(tmp_path / "net.weights", class_names=NAMES).module.network.layers[-2]
    assert ((loaded[1] if normalised else loaded[0]).bias.view(2, 8)[:, 4].sigmoid() > 0.1).all()


@pytest.mark.parametrize(
    ("route", "named"),
    [("layers=-1,2", "before this one"), ("layers=1", "before this one"), ("layers=5", "before this one")],
    ids=["itself", "one behind that reads this one", "one that is not there"],
)
def test_routes_in_a_circle_are_named(route: str, named: str, tmp_path: Path) -> None:
    """A layer may read only what is computed before it, so every circle has a link that is refused."""
    conv = "[convolutional]\nfilters=8\nactivation=leaky\n"
    body = f"{conv}[route]\n{route}\n{conv}" if "1" in route and "2" not in route else f"{conv}{conv}[route]\n{route}\n"
    (tmp_path / "net.cfg").write_text(one_head(body))
    with pytest.raises(CheckpointError, match=named):
        load_model(tmp_path / "net.cfg", class_names=NAMES)


@pytest.mark.parametrize("section", ["sam", "scale_channels"])
def test_products_of_two_layers(section: str) -> None:
    """`[sam]` multiplies maps of one size, `[scale_channels]` a map with one number a channel; OpenCV has no [sam]."""
    between = "[avgpool]\n" if section == "scale_channels" else ""
    body = (
        "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=linear\n"
        f"{between}[convolutional]\nfilters=8\nsize=1\nactivation=logistic\n[{section}]\nfrom=0\nactivation=leaky\n"
    )
    network = DarknetNetwork(parse_cfg(one_head(body), "net.cfg")).eval()
    images = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        first = network.layers[0](images)
        gate = network.layers[-4](network.layers[1](first) if between else first)
        assert gate.shape[-2:] == ((1, 1) if between else (32, 64))
        expected = torch.nn.functional.leaky_relu(first * gate, 0.1)
        torch.testing.assert_close(network(images)[0], network.layers[-2](expected))
    assert network.shapes[-3].stride == 1.0


def test_avgpool_and_dropout() -> None:
    body = "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=linear\n[dropout]\nprobability=0.5\n"
    network = DarknetNetwork(parse_cfg(one_head(body), "net.cfg"))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.eval()(images)[0], network(images)[0])
        assert not torch.equal(network.train()(images)[0], network(images)[0])
        gate = DarknetNetwork(parse_cfg(one_head(LAYERS["squeeze and excite"]), "net.cfg")).layers[1]
        torch.testing.assert_close(gate(images), images.mean(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize(("kind", "overlap"), [("diounms", "diou"), ("greedynms", "iou"), (None, "iou")])
def test_the_cfg_names_the_overlap_of_the_nms(kind: str | None, overlap: str) -> None:
    cfg = one_head("") + ("" if kind is None else f"nms_kind={kind}\n")
    model = Darknet(variant="net", sections=parse_cfg(cfg, "net.cfg"))
    attributes = model.decode_spec((32, 64)).attributes()
    assert attributes.overlap == overlap and attributes.multi_label


def test_a_network_of_ones_own_cfg_survives_in_a_checkpoint(tmp_path: Path) -> None:
    weights = network_files(tmp_path, one_head(LAYERS["shortcut"]) + "nms_kind=diounms\nscale_x_y=1.1\n")
    before = load_model(weights, class_names=NAMES)
    assert isinstance(before.module, Darknet)
    before.module.set_anchors([(5.0, 6.0), (7.5, 9.0)])
    save_checkpoint(tmp_path / "m.pt", before.module.state_dict(), before.manifest())
    weights.unlink()
    weights.with_suffix(".cfg").unlink()
    after = load_model(tmp_path / "m.pt")
    assert (after.variant, after.class_names, after.size_hw) == ("net", NAMES, (32, 32))
    assert after.manifest().decode == before.manifest().decode
    assert after.module.decode_spec((32, 32)).levels[0].anchors_wh == ((5.0, 6.0), (7.5, 9.0))
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        expected, found = before.module(images), after.module(images)
    assert all(torch.equal(found[name], head) for name, head in expected.items())
    assert read_weights(tmp_path / "m.pt", model=str(tmp_path / "net.cfg")).variant == "net"
    with pytest.raises(CheckpointError, match="one of net"):
        read_weights(tmp_path / "m.pt", model=str(tmp_path / "other.cfg"))


def test_a_cfg_is_built_by_its_path(tmp_path: Path) -> None:
    cfg = tmp_path / "net.cfg"
    cfg.write_text(one_head(""))
    assert build_model(str(cfg), num_classes=3).variant == "net"
    assert default_size_hw(str(cfg)) == (32, 32)
    with pytest.raises(InputError, match="4 classes, as many as the data has, got one of 3") as caught:
        build_model(str(cfg), num_classes=4)
    assert "\n" not in str(caught.value)


def test_cfgs_are_written_as_they_are_read() -> None:
    sections = parse_cfg(VARIANTS["yolov4-tiny"].write_cfg((416, 416), 3), "a")
    again = parse_cfg(write_cfg(sections), "a")
    assert [(s.name, s.options) for s in again] == [(s.name, s.options) for s in sections]


def test_fitted_anchors_serve_all_heads() -> None:
    model = build("yolov4-pico", 2)
    sizes = [(float(i + 2), float(2 * i + 3)) for i in range(model.num_anchor_sizes)]
    model.set_anchors(sizes)
    other = build("yolov4-pico", 2)
    other.load_state_dict(model.state_dict())
    levels = other.decode_spec((96, 96)).levels
    assert levels[0].anchors_wh == tuple(sizes[3:]) and levels[1].anchors_wh == tuple(sizes[:3])


def test_a_missing_cfg_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(bytes(20))
    with pytest.raises(CheckpointError, match=r"net\.cfg.*beside"):
        load_model(tmp_path / "net.weights", class_names=NAMES)


def test_labels_and_variants_that_do_not_fit(tmp_path: Path) -> None:
    weights = network_files(tmp_path, one_head(""))
    with pytest.raises(InputError, match="3 names"):
        load_model(weights, class_names=("a", "b"))
    with pytest.raises(InputError, match="--model"):
        load_model(weights, class_names=NAMES, model="yolov3")


def test_published_sizes() -> None:
    """Parameters with 80 classes, in millions, as the authors' files have them."""
    for variant, millions in (("yolov3", 61.9), ("yolov3-tiny", 8.9), ("yolov2", 51.0), ("yolov4", 64.4)):
        with torch.device("meta"):
            sections = parse_cfg(VARIANTS[variant].write_cfg((416, 416), 80), variant)
            count = sum(parameter.numel() for parameter in DarknetNetwork(sections).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.1), variant


def test_the_levels_of_scale_and_stride_are_the_heads() -> None:
    spec = build("yolov4-tiny", 5).decode_spec((96, 160))
    assert [level.stride for level in spec.levels] == [32.0, 16.0]
    assert [level.grid_hw for level in spec.levels] == [(3, 5), (6, 10)]
    assert spec.levels[0].anchors_wh[0] == (81.0, 82.0)
    assert spec.attributes().level_scale_xy == (1.05, 1.05)
    assert build("yolov2-tiny", 5).decode_spec((96, 160)).score_activation == "softmax"
