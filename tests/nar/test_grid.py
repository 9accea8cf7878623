"""Orders, masks and gather tables against brute force."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.nar.grid import (
    attention_mask,
    check_grid,
    coordinates,
    parallel_order,
    raster_order,
    wavefront_order,
    wavefronts,
)

sides = st.integers(1, 6)
grids = st.one_of(st.tuples(sides, sides), st.tuples(st.integers(1, 4), sides, sides))


@given(grids)
@settings(deadline=None, max_examples=60)
def test_wavefronts_partition_any_grid_by_distance(grid):
    fronts = wavefronts(grid)
    assert len(fronts) == sum(grid) - len(grid) + 1
    assert sorted(torch.cat(fronts).tolist()) == list(range(torch.tensor(grid).prod()))
    where = coordinates(grid)
    for distance, front in enumerate(fronts):
        assert (where[front].sum(1) == distance).all()
        assert (front.diff() > 0).all()


@given(grids, st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_mask_equals_brute_force(grid, condition):
    order = wavefront_order(grid)
    mask = attention_mask(order, condition)
    distance = coordinates(grid)[order.raster].sum(1).tolist()
    read = order.fed[-1]
    assert mask.shape == (condition + read, condition + read)
    for q, k in product(range(condition + read), repeat=2):
        if q < condition:
            allowed = k <= q
        else:
            allowed = k < condition or distance[k - condition] <= distance[q - condition]
        assert mask[q, k] == allowed


@given(grids)
@settings(deadline=None, max_examples=60)
def test_every_token_comes_from_its_neighbours(grid):
    order = wavefront_order(grid)
    where = coordinates(grid)[order.raster]
    for head, axis in enumerate(reversed(range(len(grid)))):
        for token in range(1, order.num_tokens):
            inside = bool(where[token, axis] > 0)
            assert order.available[head, token] == inside
            if inside:
                step = where[token] - where[order.sources[head, token]]
                assert step.tolist() == [int(a == axis) for a in range(len(grid))]
    assert (order.sources[:, 0] == -1).all()
    assert order.available[:, 0].all()


@pytest.mark.parametrize(
    ("grid", "passes"),
    [((16, 16), 31), ((24, 24), 47), ((4, 16, 16), 34), ((3, 7), 9), ((1, 1), 1)],
)
def test_number_of_passes(grid, passes):
    assert wavefront_order(grid).num_passes == passes


@pytest.mark.parametrize("order", [wavefront_order, raster_order, parallel_order])
def test_orders_only_look_at_what_was_read(order):
    made = order((4, 6))
    assert sorted(made.raster.tolist()) == list(range(24))
    assert made.starts[0] == 0
    assert made.starts[-1] == 24
    for number in range(made.num_passes):
        span = slice(made.starts[number], made.starts[number + 1])
        sources = made.sources[:, span][made.available[:, span]]
        if number == 0:
            assert (sources == -1).all()
        else:
            fed = range(made.fed[number - 1], made.fed[number])
            assert set(sources.tolist()) <= set(fed)
            tokens = made.slots[fed.start : fed.stop]
            assert (tokens[tokens < 24] < made.starts[number]).all()


def test_raster_and_parallel_passes():
    assert raster_order((16, 16)).num_passes == 256
    assert parallel_order((16, 16)).num_passes == 67
    assert parallel_order((16, 16)).num_learned == 3


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="every side at least 1"):
        check_grid((0, 4))
    with pytest.raises(ValueError, match=r"expected \(height, width\) or \(time, height, width\)"):
        check_grid((4,))
    with pytest.raises(ValueError, match="PAR-4x needs even sides"):
        parallel_order((3, 4))
