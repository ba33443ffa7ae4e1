"""Input buffers are used again, but never while somebody can still see them."""

from boxwright.runtimes.buffers import BufferPool


def test_a_buffer_that_was_let_go_comes_back() -> None:
    pool = BufferPool()
    first = pool.take((2, 3))
    address = first.ctypes.data
    del first
    assert pool.take((2, 3)).ctypes.data == address


def test_a_buffer_that_is_held_stays_untouched() -> None:
    pool = BufferPool()
    first = pool.take((2, 3))
    first[:] = 7
    second = pool.take((2, 3))
    second[:] = 8
    assert (first == 7).all()


def test_a_view_counts_as_holding() -> None:
    pool = BufferPool()
    view = pool.take((2, 3))[1, 1:]
    view[:] = 7
    pool.take((2, 3))[:] = 8
    assert (view == 7).all()


def test_other_shapes_get_other_buffers() -> None:
    pool = BufferPool()
    assert pool.take((2, 3)).shape == (2, 3)
    assert pool.take((3, 3)).shape == (3, 3)


def test_held_buffers_do_not_pile_up() -> None:
    pool = BufferPool()
    held = [pool.take((4,)) for _ in range(20)]
    assert len({array.ctypes.data for array in held}) == 20
    assert len(pool._buffers) <= 4
