"""Training in turns: which parts each step moves, how it goes on after a kill, what is refused."""

from pathlib import Path

import pytest
import torch

from boxwright.cli.main import main
from boxwright.core.errors import InputError, OutputError
from boxwright.models import build_model, load_model
from boxwright.training import TrainConfig, TrainResult
from boxwright.training.alternating import step_folder, train_alternating


def config(data: Path, out: Path, **changes: object) -> TrainConfig:
    plain = {"model": "fasterrcnn-pico", "epochs": 1, "size_hw": (64, 96), "batch": 8, "workers": 0, "device": "cpu"}
    return TrainConfig(data=data, out=out, **{**plain, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train_alternating(config(shapes_dir, tmp_path_factory.mktemp("turns")), show_progress=False)


def weights_after(out: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_model(step_folder(out, step) / "last.pt").module.state_dict())


def moved_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_each_step_moves_its_own_parts(result: TrainResult) -> None:
    steps = [weights_after(result.out, step) for step in (1, 2, 3, 4)]
    assert moved_parts(steps[0], steps[1]) == {"backbone", "roi_heads"}
    assert moved_parts(steps[1], steps[2]) == {"rpn"}
    assert moved_parts(steps[2], steps[3]) == {"roi_heads"}
    final = load_model(result.best).module.state_dict()
    assert all(torch.equal(final[name], tensor) for name, tensor in steps[3].items())
    assert result.best == result.out / "best.pt" and result.best_map is not None
    assert result.epochs_done == 4
    rows = [(step_folder(result.out, step) / "metrics.csv").read_text().splitlines()[1] for step in (1, 2, 3, 4)]
    assert [row.split(",")[4:6] == ["", ""] for row in rows] == [True, True, True, False]  # the last alone is measured


def test_a_finished_run_is_left_as_it_is_and_a_lost_step_done_again(result: TrainResult, shapes_dir: Path) -> None:
    with pytest.raises(OutputError, match="--resume"):
        train_alternating(config(shapes_dir, result.out), show_progress=False)
    before, first = weights_after(result.out, 4), (step_folder(result.out, 1) / "last.pt").stat().st_mtime_ns
    (step_folder(result.out, 4) / "last.pt").unlink()
    train_alternating(config(shapes_dir, result.out, resume=True), show_progress=False)
    after = weights_after(result.out, 4)
    assert all(torch.allclose(after[name], tensor, atol=1e-5) for name, tensor in before.items())
    assert (step_folder(result.out, 1) / "last.pt").stat().st_mtime_ns == first


def test_the_proposer_of_step_2_goes_along_and_proposes_as_many_as_in_training() -> None:
    model = build_model("fasterrcnn-pico", num_classes=2)
    initial = dict(model.state_dict())
    num_parameters = len(list(model.parameters()))
    model.begin_alternating_step(2, initial)
    assert len(list(model.parameters())) == num_parameters and model.state_dict().keys() == initial.keys()
    (proposer,) = model.proposers
    images, size_hw = torch.randn(1, 3, 64, 96), torch.tensor([[64.0, 96.0]])
    as_in_training, as_in_evaluation = model.rpn.config.top_k_in_training[1], model.rpn.config.top_k[1]
    assert proposer.propose(images, size_hw).boxes_xyxy.shape[1] == as_in_training > as_in_evaluation
    assert model.eval().propose(images, size_hw).boxes_xyxy.shape[1] == as_in_evaluation
    model.to("meta")  # as training moves it to its device, after the step has begun
    assert {tensor.device.type for tensor in proposer.state_dict().values()} == {"meta"}


def test_detectors_without_steps_are_refused_in_one_line(
    shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="parts take turns"):
        train_alternating(config(shapes_dir, tmp_path, model="yolox-pico"), show_progress=False)
    arguments = ["train", "--model", "yolox-pico", "--data", str(shapes_dir), "--out", str(tmp_path / "o")]
    assert main([*arguments, "--alternating"]) == 2
    assert "--alternating" in capfd.readouterr().err and not (tmp_path / "o").exists()
    assert main([*arguments, "--alternating", "--evolve", "2"]) == 2
