"""Objects as a scan sees them: moved and scaled, but by no more than its steps."""

import numpy as np
import pytest

from boxwright.training.window_variations import Variations, cell_variations, scan_variations

BOXES = np.array([[10, 20, 50, 40], [100, 5, 130, 95]], dtype=np.float32)
WINDOW_HW = (24, 24)


def moves_and_scales(boxes: np.ndarray, vary: Variations) -> tuple[np.ndarray, np.ndarray]:
    """How far centres lie from those of the boxes, in sides (K, N, 2), and sides in theirs (K, N, 2), for K copies."""
    varied = vary(boxes, WINDOW_HW).reshape(-1, *boxes.shape).astype(np.float64)
    assert varied.shape[0] > 1
    np.testing.assert_array_equal(varied[0], boxes)
    sides, new_sides = boxes[:, 2:] - boxes[:, :2], varied[..., 2:] - varied[..., :2]
    moves = (varied[..., :2] + varied[..., 2:]) / 2 - (boxes[:, :2] + boxes[:, 2:]) / 2
    return moves / sides, new_sides / sides


def test_a_cascades_objects_are_moved_and_scaled_by_half_a_step_of_its_scan() -> None:
    boxes = np.repeat(BOXES, 50, axis=0)
    moves, scales = moves_and_scales(boxes, scan_variations(len(boxes), seed=3))
    assert moves.shape == (5, 100, 2)
    assert 0.035 < moves.max() < 0.0401 and -0.0401 < moves.min() < -0.035
    assert 0.045 < np.log(scales).max() < 0.0501 and -0.0501 < np.log(scales).min() < -0.045
    np.testing.assert_allclose(scales[..., 0], scales[..., 1], rtol=1e-4)  # the shape stays
    assert abs(np.corrcoef(moves[1:, :, 0].ravel(), moves[1:, :, 1].ravel())[0, 1]) < 0.2


def test_what_a_seed_draws_stays() -> None:
    """First the scales of all boxes, then their moves: what is recorded of a seed depends on it."""
    random = np.random.default_rng(7)
    scales = np.exp(random.uniform(-0.05, 0.05, (2, 1)))
    moves = random.uniform(-0.04, 0.04, (2, 2))
    found_moves, found_scales = moves_and_scales(BOXES, scan_variations(2, seed=7))
    np.testing.assert_allclose(found_moves[1], moves, atol=1e-5)
    np.testing.assert_allclose(found_scales[1], np.tile(scales, 2), atol=1e-5)


@pytest.mark.parametrize(("num_boxes", "copies"), [(1, 5), (150, 4), (599, 2), (600, 1)])
def test_a_cascades_objects_are_varied_the_more_often_the_fewer_there_are(num_boxes: int, copies: int) -> None:
    assert len(scan_variations(num_boxes, seed=0)(BOXES, WINDOW_HW)) == copies * len(BOXES)


def test_hogs_objects_are_moved_by_half_a_cell_and_scaled_where_there_are_few() -> None:
    moves, scales = moves_and_scales(BOXES, cell_variations(2, seed=3))
    half_cell = 4 / 24
    expected = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]]) * half_cell
    np.testing.assert_allclose(moves, np.tile(expected[:, None], (2, 2, 1)), atol=1e-5)
    np.testing.assert_allclose(scales[:5], 1, atol=1e-5)
    assert 0.02 < np.abs(np.log(scales[5:])).max() < 0.0501
    assert len(cell_variations(1001, seed=3)(BOXES, WINDOW_HW)) == 5 * len(BOXES)
