"""`align train --method nft`: the forward process, the loss and what is known of its minimum."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from align.alignprop.nft import LIMIT, OldPolicy, advantages, nft_loss, optimality
from align.diffusion.forward_process import (
    coefficients,
    corrupt,
    error_weight,
    prediction_kind,
    self_normalized,
    target,
)

KINDS = ["flow", "epsilon", "v_prediction", "sample"]


def scheduler_of(kind):
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDPMScheduler(prediction_type=kind)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mean_square(output, right, weight):
    return weight * (output - right).square().flatten(1).mean(1)


def clean_estimate(kind, output, noised, a, s):
    """The table of DiffusionNFT's notation, written down once more."""
    a, s = a.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)
    if kind == "flow":
        return noised - s * output
    if kind == "epsilon":
        return (noised - s * output) / a
    return a * noised - s * output if kind == "v_prediction" else output


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_process_is_diffusers(kind):
    scheduler = scheduler_of(kind)
    assert prediction_kind(scheduler) == kind
    clean, noise = normal(5, 3, 4, 4), normal(5, 3, 4, 4, seed=1)
    if kind == "flow":
        scheduler.set_timesteps(8)
        timesteps = scheduler.timesteps[[0, 2, 4, 6, 7]].double()
        expected = scheduler.scale_noise(clean, scheduler.timesteps[[0, 2, 4, 6, 7]], noise)
    else:
        timesteps = torch.tensor([0, 10, 500, 900, 999])
        expected = scheduler.add_noise(clean, noise, timesteps)
    a, s = coefficients(scheduler, timesteps)
    a, s = a.double(), s.double()
    noised, right = corrupt(clean, noise, a, s), target(kind, clean, noise, a, s)
    torch.testing.assert_close(noised, expected, atol=1e-6, rtol=1e-6)
    if kind == "v_prediction":
        velocity = scheduler.get_velocity(clean, noise, timesteps)
        torch.testing.assert_close(right, velocity, atol=1e-6, rtol=1e-6)
    estimate = clean_estimate(kind, right, noised, a, s)
    torch.testing.assert_close(estimate, clean, atol=1e-6, rtol=1e-6)


def test_what_a_scheduler_does_not_tell():
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="something")
    assert prediction_kind(scheduler) is None


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_mix_as_their_clean_estimates_do(kind):
    """The estimate of a mix of outputs is the mix of the estimates, whatever is predicted."""
    a, s = torch.tensor([0.8, 0.3]).double(), torch.tensor([0.6, 0.95]).double()
    noised, one, other = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    mixed = clean_estimate(kind, 1.3 * one - 0.3 * other, noised, a, s)
    apart = [clean_estimate(kind, output, noised, a, s) for output in (one, other)]
    torch.testing.assert_close(mixed, 1.3 * apart[0] - 0.3 * apart[1])


def test_errors_count_as_those_of_the_clean_image():
    """The self-normalised error of an output is that of its clean estimate: for flow, v and x_0
    exactly, for epsilon by a bounded weight that is equal in flow's terms."""
    a, s = torch.tensor([0.8, 0.28]).double(), torch.tensor([0.6, 0.96]).double()
    noised, clean, output = (normal(2, 3, 4, 4, seed=seed) for seed in range(3))
    one = torch.ones(2).double()
    for kind in ("flow", "v_prediction", "sample"):
        a_k = 1 - s if kind == "flow" else a
        noise = (noised - a_k.view(-1, 1, 1, 1) * clean) / s.view(-1, 1, 1, 1)
        right = target(kind, clean, noise, a_k, s)
        estimate = clean_estimate(kind, output, noised, a_k, s)
        torch.testing.assert_close(
            self_normalized(output, right, error_weight(kind, a_k, s)),
            self_normalized(estimate, clean, one),
        )
    weight = error_weight("epsilon", a, s)
    torch.testing.assert_close(weight, s / (a + s))
    assert error_weight("epsilon", torch.zeros(1), torch.ones(1)) == 1  # where s / a is infinite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_on_policy_the_gradient_is_advantage_times_the_errors(kind, beta):
    right, weight = normal(6, 2, 3, 3, seed=3), torch.rand(6).double()
    output = normal(6, 2, 3, 3, seed=4).requires_grad_()
    advantage = torch.tensor([-5.0, -1.2, 0.0, 0.3, 2.0, 5.0]).double()
    loss = nft_loss(output, output.detach(), right, optimality(advantage), weight, beta)
    (found,) = torch.autograd.grad(loss.sum(), output)
    plain = advantage * self_normalized(output, right, weight)
    (expected,) = torch.autograd.grad(plain.sum(), output)
    torch.testing.assert_close(found, expected)
    assert found[2].abs().max() < 1e-15  # average of its group


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_with_the_plain_error_it_is_three_terms(beta):
    """M (e^2 / beta + 2 (2r - 1) e D + beta D^2), e the old error, D what the model moved."""
    right, old, output = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1), normal(4, 2, 3, 3, seed=2)
    r, one = torch.tensor([0.0, 0.4, 0.5, 1.0]).double(), torch.ones(4).double()
    loss = nft_loss(output, old, right, r, one, beta, mean_square)
    e, moved = old - right, output - old
    mean = lambda x: x.flatten(1).mean(1)  # noqa: E731
    expected = mean(e**2) / beta + 2 * (2 * r - 1) * mean(e * moved) + beta * mean(moved**2)
    torch.testing.assert_close(loss, LIMIT * expected, atol=1e-12, rtol=1e-12)


def test_advantages():
    scores = torch.tensor([1.0, 2, 3, 6, 5, 5, 5, 5, -40, 0, 0, 0]).double()
    by_mean = advantages(scores, 4, 2.0)
    assert by_mean[:4].tolist() == pytest.approx([-1, -0.5, 0, 1.5], rel=1e-3)
    assert not by_mean[4:8].any()
    assert by_mean[8] == -LIMIT
    shifted = advantages(scores + torch.tensor([3.0, -7.0, 1.0]).repeat_interleave(4), 4, 2.0)
    torch.testing.assert_close(shifted, by_mean)
    torch.testing.assert_close(advantages(-scores, 4, 2.0), -by_mean)
    alone = advantages(scores, 4, None)
    torch.testing.assert_close(alone[:4], advantages(7 * scores, 4, None)[:4], rtol=1e-3, atol=0)
    assert alone.view(-1, 4).sum(1).abs().max() < 1e-9
    assert optimality(torch.tensor([-5.0, 0, 5])).tolist() == [0, 0.5, 1]


def test_the_minimum_is_that_of_the_theorem():
    """Old policy N(m, v), probability of good linear in x_0, plain error: the best denoiser is that
    of N(m + k v / beta, v), at every noise level (Theorem 3.2 of 2509.16117)."""
    m, v, k, beta = 0.2, 0.7, 0.15, 0.5
    x0 = m + math.sqrt(v) * normal(100_000)
    noise = normal(100_000, seed=1)
    probability = (0.5 + k * (x0 - m) / 2).clamp(0, 1)
    for sigma in (0.3, 0.8):
        a, s = 1 - sigma, sigma
        noised = a * x0 + s * noise
        # denoisers linear in x_t hold the optimum: o = w0 + w1 x_t, the velocity
        gain = a * v / (a * a * v + s * s)
        old = (noised - (m + gain * (noised - a * m))) / s
        design = torch.stack([torch.ones_like(noised), noised], 1)
        u = noise - x0
        # the loss is quadratic in o with minimum old + (2 r - 1) (u - old) / beta in the mean
        wanted = old + (2 * probability - 1) * (u - old) / beta
        weights = torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0]
        weights = weights.clone().requires_grad_()
        loss = nft_loss(
            (design @ weights)[:, None], old[:, None], u[:, None], probability,
            torch.ones_like(old), beta, mean_square,
        ).mean()  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, weights)
        assert gradient.abs().max() < 1e-8
        moved = (noised - s * (design @ weights.detach())).mean() - x0.mean()
        posterior = v * s * s / (a * a * v + s * s)
        assert float(moved) == pytest.approx(k * posterior / beta, rel=0.05)


def test_the_old_policy_follows_its_recursion():
    parameters = [nn.Parameter(normal(3)), nn.Parameter(normal(2, seed=1))]
    old = OldPolicy(parameters, ceiling=0.002)
    expected = [p.detach().clone() for p in parameters]
    for update in range(1, 5):
        with torch.no_grad():
            for p in parameters:
                p.add_(update)
        rate = min(0.001 * update, 0.002)
        expected = [rate * e + (1 - rate) * p for e, p in zip(expected, parameters, strict=True)]
        old.follow(update)
    now = [p.detach().clone() for p in parameters]
    with old():
        for p, e in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p, e.detach(), atol=1e-14, rtol=0)
    for p, kept in zip(parameters, now, strict=True):
        assert torch.equal(p, kept)
