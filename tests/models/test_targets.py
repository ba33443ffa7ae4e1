import pytest
import torch

from boxwright.core.errors import InputError
from boxwright.models import Targets


def test_padding() -> None:
    targets = Targets(
        boxes_xyxy=[torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.zeros(0, 4)],
        class_ids=[torch.tensor([4, 2]), torch.zeros(0, dtype=torch.int64)],
    )
    padded = targets.padded(torch.device("cpu"))
    assert padded.boxes_xyxy.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8]], [[0] * 4] * 2]
    assert padded.class_ids.tolist() == [[4, 2], [0, 0]]
    assert padded.is_object.tolist() == [[True, True], [False, False]]
    assert len(targets) == 2


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="same number of images, got 1 and 2"):
        Targets(boxes_xyxy=[torch.zeros(0, 4)], class_ids=[torch.zeros(0)] * 2)
    with pytest.raises(InputError, match=r"boxes \(M, 4\)"):
        Targets(boxes_xyxy=[torch.zeros(2, 4)], class_ids=[torch.zeros(3)])
