"""Gradient windows: what is drawn, from what, and what is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.alignprop.windows import draw_window
from align.config.windows import parse_window
from align.training.seeding import image_seed


def kept(text, steps, *, update=0, seed=0, indices=(0, 1)):
    window = parse_window(text, steps)
    draw = draw_window(window, steps, seed=seed, update=update, indices=indices)
    return draw, [
        [step for step in range(steps) if draw.kept[step][i]] for i in range(len(indices))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("5", [0, 1, 2, 3, 4]),
        ("2", [3, 4]),
        ("draft-lv", [4]),
        ("draft-lv:3", [4]),
        ("sparse:0,3", [0, 3]),
        ("sparse:2,", [2]),
        ("drtune:5", [0, 1, 2, 3, 4]),
        ("random:3-3", [2, 3, 4]),
    ],
)
def test_fixed_windows(text, expected):
    draw, steps = kept(text, 5)
    assert steps == [expected, expected]
    assert draw.first == expected[0]


@given(
    st.integers(1, 60),
    st.integers(0, 10**6),
    st.integers(0, 1000),
    st.sampled_from(["random", "random-per-sample"]),
)
def test_random_windows_are_tails_and_never_empty(steps, seed, update, text):
    _, found = kept(text, steps, seed=seed, update=update, indices=range(4))
    for image in found:
        assert image == list(range(image[0], steps))
    if text == "random":
        assert all(image == found[0] for image in found)


def test_random_lengths_reach_both_ends_evenly():
    lengths = [len(kept("random", 5, update=update)[1][0]) for update in range(500)]
    assert all(70 < lengths.count(length) < 130 for length in range(1, 6))
    lengths = [len(kept("random:2-3", 5, update=update)[1][0]) for update in range(50)]
    assert set(lengths) == {2, 3}


@pytest.mark.parametrize("text", ["random", "random-per-sample", "refl", "sparse:2", "drtune:2"])
def test_draws_depend_on_seed_update_and_global_index_alone(text):
    _, whole = kept(text, 8, seed=3, update=7, indices=range(6))
    _, part = kept(text, 8, seed=3, update=7, indices=[4, 1])
    assert part == [whole[4], whole[1]]
    others = [kept(text, 8, seed=3, update=update, indices=range(6))[1] for update in range(20)]
    assert any(other != whole for other in others)


def test_per_sample_lengths_differ_within_an_update():
    _, found = kept("random-per-sample", 20, indices=range(32))
    assert len({len(image) for image in found}) > 8


def test_refl_takes_one_step_of_the_last_quarter():
    drawn = {kept("refl", 40, update=update)[0].x0_at for update in range(300)}
    assert drawn == set(range(30, 40))
    assert kept("refl", 1)[0].x0_at == 0


def test_sparse_draws_distinct_steps_and_drtune_equally_spaced_ones():
    for update in range(50):
        _, (steps, _) = kept("sparse:3", 10, update=update)
        assert len(set(steps)) == 3
        draw, (steps, _) = kept("drtune:3", 10, update=update)
        assert draw.detach_input
        assert [b - a for a, b in itertools.pairwise(steps)] == [3, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "grad_window is '0'; it must keep from 1 to 5 steps"),
        ("6", "grad_window is '6'; it must keep from 1 to 5 steps, as num_inference_steps is 5"),
        ("random:0-3", "it must keep from 1 to 5"),
        ("random:2-9", "it must keep from 1 to 5"),
        ("random:4-2", "a range is written A-B"),
        ("random:x", "a range is written A-B"),
        ("draft-lv:0", "a count of at least 1"),
        ("drtune:9", "it must keep from 1 to 5"),
        ("sparse:9", "it must keep from 1 to 5"),
        ("sparse:0,5", "its steps must be from 0 to 4"),
        ("sparse", "allowed are all, a number"),
        ("last", "grad_window is 'last'; allowed are"),
        ("-1", "allowed are"),
        ("all:3", "allowed are"),
    ],
)
def test_wrong_windows(text, message):
    with pytest.raises(ValueError, match=message):
        parse_window(text, 5)


def test_image_seeds_are_all_different():
    keys = [(p, s, u, i) for p in "ab" for s in range(3) for u in range(10) for i in range(10)]
    assert len({image_seed(*key) for key in keys}) == len(keys)
