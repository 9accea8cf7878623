"""The search methods: updates, budgets, screening, guards, bad input."""

import math

import numpy as np
import pytest
import torch
from tiny import build, tiny_pipeline

import align
from align.config.budget import Purse, parse_budget
from align.config.optimize import SEARCHES
from align.diffusion.sample import generate, make_noise
from align.noise_opt.ascend import paper_plan
from align.noise_opt.carinox import Track, _moved, goes_on, refilled, screen
from align.noise_opt.explore import blend
from align.noise_opt.guard import disturbed
from align.noise_opt.records import Answer, Ask
from align.noise_opt.regularizers import log_norm, prior_gradient, to_sphere
from align.noise_opt.search import _Best, _choose

PROMPT = "two dogs"
GRADIENT_METHODS = ("reno", "langevin", "carinox", "carinox-paper")


def brightness(images, prompts):
    weights = torch.linspace(-1, 2, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    return 10 * (images.sin() * weights).flatten(1).mean(1)


def steep(images, prompts):
    return 200 * brightness(images, prompts)


def stepwise(images, prompts):
    return (images.mean((1, 2, 3)) * 50).floor()


stepwise.differentiable = False


def run(method, reward=brightness, pipe=None, **settings):
    config = align.OptimizeConfig(method=method, **settings)
    return list(align.optimize(pipe or tiny_pipeline("sd-turbo"), PROMPT, reward, config))


def test_reno_equals_its_update_in_numpy():
    """SGD with Nesterov momentum on the clipped gradient, from torch's documentation and ReNO."""
    pipe = build("sd-turbo").to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2
    settings = {"iterations": 6, "regularizer": 0.01, "clip": 0.1, "learning_rate": 5.0}
    steps = run("reno", steep, pipe, **settings)
    noise, velocity = make_noise(pipe, [0]).double().numpy(), 0.0
    clips = 0
    for step in steps:
        np.testing.assert_allclose(step.noise[None].numpy(), noise, rtol=0, atol=1e-6)
        leaf = torch.tensor(noise, requires_grad=True)
        score = steep(generate(pipe, [PROMPT], latents=leaf, grad_steps="all"), None)
        (gradient,) = torch.autograd.grad(-score.sum(), leaf)
        length = np.sqrt((noise**2).sum())
        prior = 0.01 * noise * (1 - (noise.size - 1) / length**2)
        gradient = gradient.numpy() + prior
        norm = np.sqrt((gradient**2).sum())
        clips += norm > 0.1
        gradient *= min(1.0, 0.1 / (norm + 1e-6))
        velocity = 0.9 * velocity + gradient
        noise = noise - 5.0 * (gradient + 0.9 * velocity)
        assert step.total == pytest.approx(score.item(), rel=1e-9)
    assert len(steps) == 6
    assert clips > 0
    assert np.abs(noise - make_noise(pipe, [0]).numpy()).max() > 0.05


@pytest.mark.parametrize("method", SEARCHES)
def test_methods_improve_and_count(method):
    steps = run(method, iterations=4, seeds=4)
    totals = [step.best_total for step in steps]
    if method != "carinox":  # which chooses by the scores of changed copies
        assert totals == sorted(totals)
    assert totals[-1] > float(steps[0].totals[0])
    last = steps[-1]
    with torch.no_grad():
        again = generate(tiny_pipeline("sd-turbo"), [PROMPT], latents=last.best_noise[None], seed=0)
    torch.testing.assert_close(again[0], last.best_image, atol=1e-5, rtol=0)
    assert last.best_noise.dtype == torch.float32
    assert brightness(again, None).item() == pytest.approx(last.best_total, abs=1e-5)
    assert last.generator_forwards == sum(len(step.totals) for step in steps)
    assert (last.generator_backwards > 0) == (method in GRADIENT_METHODS)
    first = steps[0].noises[0]
    assert torch.equal(first, make_noise(tiny_pipeline("sd-turbo"), [0])[0])


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("budget", "steps"), [("30nfe", 1), ("14images", 1), ("40nfe", 2)])
def test_budgets_are_spent_and_never_exceeded(method, budget, steps):
    settings = {"budget": budget, "num_inference_steps": steps, "backward_cost": 1.5}
    last = run(method, **settings)[-1]
    amount, passes = parse_budget(budget).amount, 1
    if "nfe" in budget:
        spent = steps * (last.generator_forwards + 1.5 * last.generator_backwards)
        passes = steps * 2.5
    else:
        spent = last.generator_forwards
    assert amount - 4 * passes < spent <= amount


def test_a_budget_in_seconds():
    last = run("bon", budget="2s")[-1]
    assert last.seconds < 8  # a batch may be under way, on a busy machine
    assert last.generator_forwards >= 4


@pytest.mark.usefixtures("unchecked")
def test_pictures_made_by_a_gradient_are_compared_by_changed_copies():
    class Evenness:
        """Copies of a noisy image lose, those of an even one do not, whatever its score was."""

        def score(self, images):
            return None, -images.flatten(2).std(2).mean(1)

    def answer(images, *scores):
        totals = torch.tensor(scores)
        return Answer(images, {"r": totals}, totals, None)

    best, noise = _Best(), torch.arange(3.0).view(3, 1, 1, 1).expand(3, 4, 2, 2)
    noisy, even = torch.rand(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    mild = 0.5 + 0.1 * (noisy - 0.5)

    def offer(phase, images, *scores):
        ask = Ask(noise[: len(images)], phase)
        return _choose(best, ask, answer(images, *scores), Evenness(), "robust")

    assert offer("explore", torch.cat([even, mild]), 1.0, 7.0)
    assert best.total == 7
    assert not offer("optimize", noisy, 9.0)  # a score without the image it stands for
    assert offer("optimize", torch.cat([noisy, even]), 9.0, 6.0)
    assert (best.total, best.terms, float(best.noise[0, 0, 0])) == (6, {"r": 6.0}, 1)
    assert not offer("optimize", even, math.nan)
    assert offer("explore", noisy, 9.5)  # merely chosen
    assert best.total == 9.5


def test_halfway_the_worse_candidates_make_room_for_the_next():
    noises, rung = torch.arange(4.0).view(4, 1, 1, 1), []
    bests = (1.0, 3.0, 0.5, 2.5)
    assert [goes_on(Track(noises[0], best=b, age=3), 6, rung) for b in bests] == [1, 1, 0, 1]
    assert rung == list(bests)
    assert goes_on(Track(noises[0], best=-9.0, age=4), 6, rung)  # it was looked at before
    assert len(rung) == 4
    tracks, waiting, notes = refilled([Track(noises[0])], [2, 3], 2, noises)
    assert [float(track.noise) for track in tracks] == [0, 2]
    assert (waiting, notes) == ([3], ("candidate 2 is followed",))


def test_a_plateau_or_the_end_of_its_path_ends_a_candidate():
    track, went = Track(torch.randn(1, 2, 2)), []
    for score in (1.0, 2.0, 2.0, 1.5, 1.9, 1.9):
        track = _moved(track, torch.ones(1, 2, 2), score, 20.0)
        went.append(goes_on(track, 10, []))
    assert went == [True] * 6  # a plateau is half a path without a better score
    assert (track.best, track.age, track.since) == (2.0, 6, 4)
    assert not goes_on(_moved(track, torch.ones(1, 2, 2), 2.0, 20.0), 10, [])
    assert goes_on(_moved(track, torch.ones(1, 2, 2), 2.1, 20.0), 10, [])
    assert not goes_on(track, 6, [])


def test_carinox_starts_from_fresh_noises_once_the_explored_ones_are_used_up():
    steps = run("carinox", budget="40nfe", backward_cost=1.0, explore_share=0.0)
    notes = [note for step in steps for note in step.notes]
    assert notes[:2] == ["candidate 0 is followed", "candidate 1 is followed"]
    assert len(notes) > 2
    assert steps[-1].generator_forwards + steps[-1].generator_backwards >= 38


@pytest.mark.usefixtures("unchecked")
def test_the_paper_keeps_its_proportion():
    class Fake:
        weights = torch.ones(4)
        purse = Purse(parse_budget("3500nfe"), backward_cost=1.5)

    assert paper_plan(Fake) == (7, 71)
    Fake.purse = Purse(parse_budget("50nfe"), backward_cost=1.5)
    assert paper_plan(Fake) == (1, 7)


def test_runs_repeat_and_seeds_differ():
    ends = [run("carinox", seeds=4, iterations=3, seed=seed)[-1] for seed in (0, 0, 1)]
    assert torch.equal(ends[0].best_noise, ends[1].best_noise)
    assert not torch.equal(ends[0].best_noise, ends[2].best_noise)


@pytest.mark.parametrize(("share", "phases"), [(0.0, ["explore", "optimize"]), (1.0, ["explore"])])
def test_carinox_may_only_optimize_or_only_explore(share, phases):
    steps = run("carinox", budget="20nfe", backward_cost=1.0, explore_share=share)
    assert list(dict.fromkeys(step.phase for step in steps)) == phases
    if share == 0:
        assert len(steps[0].totals) == 1  # the noise to start from


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_rewards_without_gradient(method):
    with pytest.raises(ValueError, match=r"stepwise has no gradient, which method .* evolution"):
        run(method, stepwise)


def test_a_reward_without_gradient_screens_beside_one_that_has_one(tmp_path):
    (tmp_path / "r.py").write_text(
        "def smooth(images, prompts):\n    return images.mean((1, 2, 3))\n"
        "def hard(images, prompts):\n    return (images[:, 0].mean((1, 2)) * 50).floor()\n"
        "hard.differentiable = False\n"
    )
    both = f"{tmp_path}/r.py:smooth,{tmp_path}/r.py:hard=2"
    steps = run("carinox", both, seeds=3, iterations=3)
    assert {step.phase for step in steps} == {"explore", "optimize"}
    expected = [w * v for w, v in zip((1, 2), steps[-1].best_terms.values(), strict=True)]
    assert steps[-1].best_total == pytest.approx(sum(expected))
    with pytest.raises(ValueError, match="has no gradient"):
        run("reno", both)


class Breaks(torch.autograd.Function):
    """The identity with a gradient that is no number for bright images."""

    @staticmethod
    def forward(ctx, images):
        ctx.bright = images.mean((1, 2, 3)) > images.mean()
        return images.clone()

    @staticmethod
    def backward(ctx, *gradients):
        broken = gradients[0].clone()
        broken[ctx.bright] = math.nan
        return broken


def test_candidates_with_a_broken_gradient_are_dropped_and_reported():
    def broken(images, prompts):
        return brightness(Breaks.apply(images), prompts)

    steps = run("reno", broken, seeds=4, iterations=3)
    assert "dropped: score or gradient is not finite" in steps[0].notes[0]
    assert 0 < len(steps[1].totals) < 4
    assert math.isfinite(steps[-1].best_total)


def test_scores_that_are_no_number_never_win():
    def partly(images, prompts):
        scores = brightness(images, prompts)
        return torch.where(scores == scores.max(), math.nan, scores)

    step = run("bon", partly, seeds=4)[-1]
    assert math.isfinite(step.best_total)
    assert step.best_total == float(step.totals[step.totals.isfinite()].max())
    with pytest.raises(RuntimeError, match="no image of 'two dogs' and its score was finite"):
        run("bon", lambda images, prompts: images.mean((1, 2, 3)) * math.nan, seeds=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": "2parsecs"}, "budget is '2parsecs'; it must be a positive number"),
        ({"budget": "0s"}, "budget is '0s'"),
        ({"budget": "3nfe", "num_inference_steps": 4}, "one image takes 4 nfe"),
        ({"category": "colour"}, "category is 'colour'; it must be one of"),
        ({"num_inference_steps": 2, "grad_steps": 3}, "grad_steps is 3"),
        ({"height": 9}, "height is 9"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        run("carinox", **settings)


@pytest.mark.parametrize(("prompt", "error"), [("  ", ValueError), (["a"], TypeError)])
@pytest.mark.usefixtures("unchecked")
def test_bad_prompts_before_any_work(prompt, error):
    with pytest.raises(error, match="prompt"):
        align.optimize(tiny_pipeline("sd-turbo"), prompt, brightness)


def test_closing_early_keeps_what_was_found():
    search = align.optimize(tiny_pipeline("sd-turbo"), PROMPT, brightness)
    step = next(search)
    search.close()
    assert step.best_total == float(step.totals.max())
    assert torch.is_grad_enabled()


def test_the_prior_prefers_gaussian_noise():
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert (log_norm(1.7 * noise) > log_norm(noise)).all()
    moved = 1.5 * noise
    gradient = prior_gradient(0.5)(moved)
    ahead, behind = (0.5 * log_norm(moved + s * noise) for s in (1e-5, -1e-5))
    measured = (ahead - behind) / 2e-5
    torch.testing.assert_close((gradient * noise).flatten(1).sum(1), measured, rtol=1e-4, atol=1e-7)


def test_log_norm_is_least_at_its_own_radius():
    direction = to_sphere(torch.randn(1, 4, 8, 8, dtype=torch.float64)) / 16
    radius = torch.linspace(14, 18, 401, dtype=torch.float64)
    values = log_norm(direction * radius.view(-1, 1, 1, 1))
    assert radius[values.argmin()] == pytest.approx(math.sqrt(255), abs=0.01)


def test_sphere_and_blend_keep_the_variance():
    noise, other = torch.randn(2, 5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    norms = to_sphere(noise).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((5,), 32.0))
    mixed = blend(to_sphere(noise), to_sphere(other), 0.95)
    assert (mixed.std() - 1).abs() < 0.05
    cosine = torch.cosine_similarity(mixed.flatten(1), noise.flatten(1))
    assert (cosine - 0.95).abs().max() < 0.03


def test_screening_puts_lookalikes_last():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1] = images[0] + 0.001
    assert screen(images, torch.tensor([4.0, 3.0, 2.0, 1.0])) == [0, 2, 3, 1]


def test_disturbed_copies_stay_close():
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), (64, 64), mode="bicubic")[0]
    copies = disturbed(image.clamp(0, 1))
    assert copies.shape == (4, 3, 64, 64)
    assert 0 <= copies.min() <= copies.max() <= 1
    assert (copies - image.clamp(0, 1)).abs().mean() < 0.1
    assert torch.equal(copies, disturbed(image.clamp(0, 1)))
