"""What can be wrong with a checkpoint, and the one line that says so."""

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from boxwright.core.errors import CheckpointError, InputError, OutputError
from boxwright.models import LoadedModel, build_model, load_model
from boxwright.models.common.checkpoint import find_state_dict, load_weights, read_checkpoint
from boxwright.models.common.saving import save_checkpoint


class RunsWhenLoaded:
    """A pickle of this would make a folder if it were trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("loaded",)


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps({"model": RunsWhenLoaded()}, protocol=2))
    for path in (write(tmp_path / "zip.pth", {"model": RunsWhenLoaded()}), plain):
        with pytest.raises(CheckpointError, match=r"expected tensors.*got a pickle that needs posix\.mkdir") as caught:
            read_checkpoint(path)
        assert caught.value.exit_status == 2
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "loaded").exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "module.pth", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"pickle that needs torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(path)


BROKEN_FILES = [
    ("text.pth", b"these are no weights", "expected a file that torch.save wrote"),
    ("empty.pth", b"", "expected a file that torch.save wrote"),
    ("zip.pth", b"PK\x03\x04" + bytes(100), "expected a file that torch.save wrote"),
    ("pickle.pth", pickle.dumps({"model": 1}, protocol=4), "expected a file that torch.save wrote"),
    ("model.onnx", b"\x08\x07", "open exported models with boxwright.Detector"),
    ("model.engine", b"\x00", "open exported models with boxwright.Detector"),
]


@pytest.mark.parametrize(("name", "data", "message"), BROKEN_FILES)
def test_broken_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / name)


def test_a_file_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.pth", {"model": {"weight": torch.zeros(5000)}})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(CheckpointError, match=r"expected a file that torch\.save wrote"):
        read_checkpoint(path)


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="got a folder"):
        read_checkpoint(tmp_path)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a dict of tensors, got list"):
        read_checkpoint(write(tmp_path / "list.pth", [torch.zeros(1)]))


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_weights_are_found_where_people_put_them(key: str | None) -> None:
    state = {"module.weight": torch.ones(2)}
    assert list(find_state_dict(state if key is None else {"epoch": 3, key: state}, "x.pth")) == ["weight"]


def test_no_weights_at_all() -> None:
    with pytest.raises(CheckpointError, match="got the keys 'epoch', 'args'"):
        find_state_dict({"epoch": 1, "args": {}}, "x.pth")


def test_missing_surplus_and_misshapen_keys_are_listed_up_to_ten() -> None:
    module = build_model("yolox-pico", num_classes=2)
    state = dict(module.state_dict())
    biases = [key for key in state if key.endswith("bn.bias")]
    for key in biases[:12]:
        del state[key]
    state["head.extra"] = torch.zeros(1)
    state["backbone.stem.conv.bn.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, state, "mine.pth")
    text = str(caught.value)
    assert "12 missing: " + ", ".join(biases[:10]) + " and 2 more" in text
    assert "1 surplus: head.extra" in text
    assert "1 of another shape: backbone.stem.conv.bn.weight (3,) instead of (8,)" in text


def test_batchnorm_counters_may_be_missing() -> None:
    module = build_model("yolox-pico", num_classes=2)
    state = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_weights(build_model("yolox-pico", num_classes=2), state, "mine.pth")


def test_an_authors_file_needs_a_variant_and_labels_that_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", {"model": {"head.cls_preds.0.weight": torch.zeros(3, 4, 1, 1)}})
    with pytest.raises(InputError, match="pass --model"):
        load_model(path)
    with pytest.raises(InputError, match=r"expected one of.*yolox-pico.*got 'yolox-q'"):
        load_model(path, model="yolox-q", class_names="coco")
    with pytest.raises(CheckpointError, match=r"m\.pth.*missing"):
        load_model(path, model="yolox-pico", class_names="a,b,c")


def test_another_family_is_named_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "resnet.pth", {"conv1.weight": torch.zeros(3, 4, 1, 1), "fc.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"resnet\.pth: expected the tensors of yolox-s.*got others: conv1"):
        load_model(path, model="yolox-s", class_names="coco")


OWN_CHECKPOINTS = [
    ({"boxwright": {"schema": 2}}, "expected checkpoint schema 1, got 2"),
    ({"boxwright": "x"}, "expected checkpoint schema 1, got None"),
    ({"boxwright": {"schema": 1}, "model": {}}, "got no manifest"),
    ({"boxwright": {"schema": 1}, "model": {}, "manifest": "{}"}, "expected the key family"),
]


@pytest.mark.parametrize(("content", "message"), OWN_CHECKPOINTS)
def test_own_checkpoints_that_are_not_right(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(write(tmp_path / "own.pt", content))


def test_a_disk_without_room_leaves_the_old_file(tmp_path: Path) -> None:
    module = build_model("yolox-pico", num_classes=2)
    manifest = LoadedModel(
        module=module,
        family="yolox",
        variant="yolox-pico",
        class_names=("a", "b"),
        preprocess=module.default_preprocess((64, 64)),
        size_hw=(64, 64),
    ).manifest()
    (tmp_path / "m.pt").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="expected room and a working file system"):
            save_checkpoint(tmp_path / "m.pt", module.state_dict(), manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert (tmp_path / "m.pt").read_bytes() == b"old"
    with pytest.raises(InputError, match="expected keys other than"):
        save_checkpoint(tmp_path / "m.pt", module.state_dict(), manifest, {"model": 1})
