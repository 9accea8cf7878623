"""The losses of GRPO and DPO against plain formulas and finite differences."""

import pytest
import torch

from align.models.lora import lora_disabled
from align.nar.training.align import open_session, sample_groups
from align.nar.training.losses import dpo_losses, grpo_losses
from align.nar.training.policy import best_and_worst, divergence, group_advantages
from tests.nar.align_helpers import randomize, small_config, tiny_pipe

H = 1e-6


@pytest.fixture(autouse=True)
def _double(float64_stays):
    torch.set_num_threads(1)


def opened(tmp_path, **changes):
    """A session in float64 with its LoRA off zero, and images to learn from."""
    pipe = tiny_pipe().to(torch.float64)
    settings = {"batch_size": 6, "group_size": 3, "micro_batch_size": 4, **changes}
    session = open_session(small_config(tmp_path, **settings), reward=scores_of, pipe=pipe)
    randomize(pipe)
    for parameter in session.parameters:
        parameter.data = parameter.data.double()
    return session, sample_groups(session, 0)


def scores_of(images, prompts):
    return images.flatten(1).mean(1) * 100


def log_softmax_of(session, sampled):
    """The policy's log-probabilities of all codes, by the definition."""
    c, model = session.config, session.pipe.transformer
    logits = model(sampled.ids, sampled.condition, sampled.mask)
    if c.guidance_scale != 1:
        null = model.null_condition.expand_as(sampled.condition)
        bare = model(sampled.ids, null, sampled.mask)
        logits = bare + c.guidance_scale * (logits - bare)
    weights = (logits / c.temperature).exp()
    return (weights / weights.sum(-1, keepdim=True)).log()


def grpo_by_hand(session, sampled, old):
    """Equation 3 of arXiv 2402.03300, picture by picture and token by token."""
    c = session.config
    with torch.no_grad():
        mine = log_softmax_of(session, sampled)
        with lora_disabled(session.pipe):
            base = log_softmax_of(session, sampled)
    total = 0.0
    for row in range(len(sampled.ids)):
        group = sampled.scores[row // c.group_size * c.group_size :][: c.group_size]
        advantage = float((sampled.scores[row] - group.mean()) / group.std())
        for place, token in enumerate(sampled.ids[row].tolist()):
            gain = float((mine[row, place, token] - old[row, place]).exp()) * advantage
            kl = float((mine[row, place].exp() * (mine[row, place] - base[row, place])).sum())
            total += c.kl_weight * kl - gain
    return total / sampled.ids.numel()


def dpo_by_hand(session, sampled, old):
    c, total = session.config, 0.0
    with torch.no_grad():
        mine = log_softmax_of(session, sampled)
        with lora_disabled(session.pipe):
            base = log_softmax_of(session, sampled)
    above = (mine - base).gather(-1, sampled.ids[..., None]).sum((1, 2))
    groups = sampled.scores.view(-1, c.group_size)
    for number, group in enumerate(groups):
        good, bad = (number * c.group_size + int(i) for i in (group.argmax(), group.argmin()))
        margin = torch.tensor(float(c.beta * (above[good] - above[bad])), dtype=torch.float64)
        total -= float(torch.sigmoid(margin).log())
    return total / len(groups)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", {"kl_weight": 0.3}),
        ("grpo", {"kl_weight": 0.0, "temperature": 0.8, "guidance_scale": 2.0}),
        ("dpo", {"beta": 0.7}),
    ],
)
def test_gradients_are_those_of_the_formulas(tmp_path, method, changes):
    session, sampled = opened(tmp_path, method=method, **changes)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        old = log_softmax_of(session, sampled).gather(-1, sampled.ids[..., None])[..., 0]
    losses, by_hand = {
        "grpo": (grpo_losses, grpo_by_hand),
        "dpo": (dpo_losses, dpo_by_hand),
    }[method]
    total = 0.0
    for part in losses(session, sampled):
        part.loss.backward()
        total += part.figures["loss"]
    assert total == pytest.approx(by_hand(session, sampled, old), abs=1e-9)
    gradients = [p.grad.clone() for p in session.parameters]
    for _ in range(3):
        moves = [torch.randn(p.shape, generator=generator).double() for p in session.parameters]
        values = []
        for sign in (1, -1):
            for parameter, move in zip(session.parameters, moves, strict=True):
                parameter.data += sign * H * move
            values.append(by_hand(session, sampled, old))
            for parameter, move in zip(session.parameters, moves, strict=True):
                parameter.data -= sign * H * move
        slope = (values[0] - values[1]) / (2 * H)
        along = sum(float((g * m).sum()) for g, m in zip(gradients, moves, strict=True))
        assert along == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_micro_batches_do_not_change_the_gradient(tmp_path):
    gradients = []
    for size in (1, 6):
        session, sampled = opened(tmp_path / str(size), micro_batch_size=size, kl_weight=0.1)
        for part in grpo_losses(session, sampled):
            part.loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in session.parameters]))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_advantages_of_a_group():
    scores = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    advantages = group_advantages(scores, 3)
    expected = (scores[:3] - 3) / scores[:3].std()
    torch.testing.assert_close(advantages[:3], expected)
    assert advantages[3:].tolist() == [0, 0, 0]  # alike: nothing to learn
    plain = group_advantages(scores, 3, normalize_std=False)
    assert plain.tolist() == [-2, -1, 3, 0, 0, 0]


def test_pairs_leave_out_groups_without_a_better_image():
    best, worst = best_and_worst(torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0]), 2)
    assert (best.tolist(), worst.tolist()) == ([1, 4], [0, 5])


def test_divergence_is_zero_for_the_same_and_matches_torch():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double()
    assert float(divergence(a, a + 3.0).abs().max()) < 1e-12
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
    )
    torch.testing.assert_close(divergence(a, b), expected)
