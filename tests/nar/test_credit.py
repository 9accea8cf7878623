"""Credit of wavefronts by the reward of the unfinished picture, against plain formulas."""

import itertools

import pytest
import torch

from align.nar.alignment import open_session, sample_groups
from align.nar.config import NarAlignConfig
from align.nar.credit import (
    generalized_advantages,
    pass_of_tokens,
    scores_of_unfinished,
    unfinished,
    value_points,
    values_of,
)
from align.nar.grid import parallel_order, raster_order, wavefront_order
from align.nar.losses import token_advantages
from align.nar.policy import group_advantages
from align.rewards import load_reward
from tests.nar.align_helpers import run, small_config, tiny_pipe

SQUARE = wavefront_order((2, 2))  # three passes of 1, 2 and 1 tokens


def test_passes_of_tokens():
    assert pass_of_tokens(wavefront_order((2, 3))).tolist() == [0, 1, 2, 1, 2, 3]
    assert pass_of_tokens(raster_order((2, 3))).tolist() == [0, 1, 2, 3, 4, 5]
    order = parallel_order((4, 4))
    counted = pass_of_tokens(order).bincount().tolist()
    assert counted == [b - a for a, b in itertools.pairwise(order.starts)]


@pytest.mark.parametrize(
    ("passes", "count", "expected"),
    [(4, 3, [1, 2, 3]), (4, 15, [1, 2, 3]), (31, 2, [10, 21]), (31, 1, [16]), (1, 5, [])],
)
def test_value_points_lie_between_nothing_and_all(passes, count, expected):
    assert value_points(passes, count) == expected


def test_an_unfinished_image_has_the_median_of_what_is_drawn():
    images = torch.rand(2, 3, 8, 12)
    passes = pass_of_tokens(wavefront_order((2, 3))).view(2, 3)
    part = unfinished(images, passes, 2)  # three of the six patches of 4 x 4 pixels
    drawn = torch.zeros(8, 12, dtype=torch.bool)
    drawn[:4, :8] = drawn[4:, :4] = True
    assert torch.equal(part[..., drawn], images[..., drawn])
    for image, mine in zip(images, part, strict=True):
        for channel in range(3):
            median = image[channel][drawn].median()
            assert (mine[channel][~drawn] == median).all()
    assert torch.equal(unfinished(images, passes, 4), images)


def test_the_scores_of_unfinished_images_do_not_see_the_rest():
    """Two pictures that differ in the last token only score alike until it is drawn."""
    images = torch.rand(1, 3, 8, 12).repeat(2, 1, 1, 1)
    images[1, :, 4:, 8:] = 0
    order = wavefront_order((2, 3))
    reward = load_reward(lambda images, prompts: images.flatten(1).sum(1))
    scores = scores_of_unfinished(reward, images, ["a", "a"], [{}, {}], order, 15)
    assert scores.shape == (2, 3)
    assert torch.equal(scores[0], scores[1])


def test_an_image_of_one_token_gets_its_own_advantage():
    images, order = torch.rand(4, 3, 8, 8), wavefront_order((1, 1))
    reward = load_reward(lambda images, prompts: images.flatten(1).sum(1))
    scores = scores_of_unfinished(reward, images, ["a"] * 4, [{}] * 4, order, 15)
    assert scores.shape == (4, 0)
    advantages = group_advantages(images.flatten(1).sum(1), 4)
    found = generalized_advantages(values_of(scores, advantages, 4), advantages, order, 0.8)
    torch.testing.assert_close(found, advantages[:, None])


def test_values_are_scaled_to_what_they_foresee():
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(8, generator=generator).view(2, 4)
    advantages = (advantages - advantages.mean(1, keepdim=True)).flatten()
    level = torch.tensor([5.0, -3.0]).repeat_interleave(4)  # of the prompt: foresees nothing
    unrelated = torch.randn(8, generator=generator)
    constant = torch.ones(8)
    broken = torch.full((8,), torch.nan)
    scores = torch.stack([level + 4 * advantages, -advantages, unrelated, constant, broken], dim=1)
    values = values_of(scores, advantages, 4)
    torch.testing.assert_close(values[:, 0], advantages)
    torch.testing.assert_close(values[:, 1], advantages)
    centred = (unrelated.view(2, 4) - unrelated.view(2, 4).mean(1, keepdim=True)).flatten()
    slope = torch.linalg.lstsq(centred[:, None], advantages[:, None]).solution
    torch.testing.assert_close(values[:, 2], slope[0, 0] * centred)
    assert values[:, 3:].abs().max() == 0


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_advantages_are_those_of_the_formula(gae_lambda):
    """Equation 16 of arXiv 1506.02438, pass by pass, with the value known after each."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(5, 2, generator=generator)
    final = torch.randn(5, generator=generator)
    credit = generalized_advantages(values, final, SQUARE, gae_lambda)
    for row in range(5):
        curve = [0.0, *values[row].tolist(), float(final[row])]
        for token, number in enumerate(pass_of_tokens(SQUARE).tolist()):
            expected = sum(
                gae_lambda**later * (curve[number + later + 1] - curve[number + later])
                for later in range(3 - number)
            )
            assert float(credit[row, token]) == pytest.approx(expected, abs=1e-6)


def test_between_points_the_value_is_interpolated():
    order = raster_order((2, 4))
    values, final = torch.tensor([[4.0]]), torch.tensor([6.0])  # known after 4 of 8 passes
    rises = generalized_advantages(values, final, order, 0.0)
    torch.testing.assert_close(rises, torch.tensor([[1.0] * 4 + [0.5] * 4]))


def test_any_value_leaves_the_expected_gradient():
    """With lambda 1 the value is a baseline: over all pictures the gradient is the plain one's."""
    torch.manual_seed(0)
    shapes = ((2,), (2, 2, 2), (2, 2, 2, 2))
    tables = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    pictures = torch.tensor(list(itertools.product((0, 1), repeat=4)))  # raster: pass 0, 1, 1, 2
    a, b, c, d = pictures.unbind(1)
    parts = [
        tables[0].log_softmax(-1)[a],
        tables[1].log_softmax(-1)[a, 0, b],
        tables[1].log_softmax(-1)[a, 1, c],
        tables[2].log_softmax(-1)[a, b, c, d],
    ]
    log_probs = torch.stack(parts, dim=1)
    reward = torch.randn(16, dtype=torch.float64)
    by_prefix = [torch.randn(2, dtype=torch.float64), torch.randn(2, 2, 2, dtype=torch.float64)]
    values = torch.stack([by_prefix[0][a], by_prefix[1][a, b, c]], dim=1)
    chance = log_probs.detach().sum(1).exp()
    credit = generalized_advantages(values, reward, SQUARE, 1.0)
    assert (credit - reward[:, None]).abs().max() > 0.1
    gradients = [
        torch.autograd.grad((chance * (log_probs * of).sum(1)).sum(), tables, retain_graph=True)
        for of in (credit, reward[:, None])
    ]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain)


def top_left(images, prompts):
    """A reward that the first token decides alone."""
    return images[:, :, :4, :4].flatten(1).mean(1)


def test_tokens_that_earned_nothing_get_no_credit(tmp_path):
    settings = {"gae_lambda": 0.9, "batch_size": 16, "group_size": 8}
    session = open_session(small_config(tmp_path, **settings), reward=top_left, pipe=tiny_pipe())
    sampled = sample_groups(session, 0)
    advantages = token_advantages(session, sampled)
    assert advantages.shape == (16, 6)
    whole = group_advantages(sampled.scores, 8)
    torch.testing.assert_close(advantages[:, 0], whole)
    assert whole.abs().max() > 1
    assert advantages[:, 1:].abs().max() < 1e-4


def test_the_reward_rises_by_credit(tmp_path):
    def dark(images, prompts):
        return (images.mean(1) < 0.5).float().flatten(1).mean(1)

    result, _ = run(
        tmp_path, reward=dark, learning_rate=0.02, kl_weight=0.0, gae_lambda=0.8, steps=25,
        pipe=tiny_pipe(text=False), prompts=["cat", "dog"], batch_size=32, group_size=16,
        micro_batch_size=None,
    )  # fmt: skip
    rewards = [record["reward"] for record in result.metrics]
    assert sum(rewards[-3:]) - sum(rewards[:3]) > 4.5 * result.metrics[0]["reward_std"], rewards


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gae_lambda": 1.5}, "gae_lambda is 1.5; it must be from 0 to 1"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1; it must be from 0 to 1"),
        ({"value_points": 0}, "value_points is 0; it must be at least 1"),
        ({"gae_lambda": 0.9, "method": "dpo"}, "gae_lambda is for method grpo"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        NarAlignConfig(**changes)
