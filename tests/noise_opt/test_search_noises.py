"""Which noises a search starts from and injects, in every precision, and what a budget prices."""

import time
from dataclasses import replace

import pytest
import torch
from diffusers.utils import torch_utils
from tiny import BUILDERS, build, tiny_pipeline, with_scheduler

import align
from align.commands.generate import load_noise
from align.config.budget import Budget, Purse
from align.diffusion.denoisers import image_size
from align.diffusion.sample import generate, make_noise
from align.evaluation.methods import parse_methods, run
from align.evaluation.pricing import Costs, Task, measure_costs, priced
from align.noise_opt.evaluate import Evaluator
from align.noise_opt.folder import save_noise
from align.noise_opt.objective import Objective, parts_of
from align.noise_opt.paint import make_painter
from align.noise_opt.search import candidate_seeds
from align.rewards import load_reward

PROMPT = "two dogs"
STOCHASTIC = ("DDIMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler", "DDPMScheduler")


def bright(images, prompts):
    weights = torch.linspace(-1, 2, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    return 10 * (images.sin() * weights).flatten(1).mean(1)


def search(pipe, **settings):
    return list(align.optimize(pipe, PROMPT, bright, align.OptimizeConfig(**settings)))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_first_candidate_and_the_best_are_generates_pictures(name):
    pipe = with_scheduler(tiny_pipeline("sd"), name)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0}
    steps = search(pipe, method="bon", seeds=3, seed=7, **settings)
    with torch.no_grad():
        first = generate(pipe, [PROMPT], seed=7, **settings)[0]
        noise = steps[-1].best_noise[None]
        best = generate(pipe, [PROMPT], latents=noise, seed=7, **settings)[0]
    torch.testing.assert_close(steps[0].images[0], first, atol=1e-5, rtol=0)
    torch.testing.assert_close(steps[-1].best_image, best, atol=1e-5, rtol=0)


def test_no_noise_is_drawn_twice(monkeypatch):
    """Neither what a sampler injects nor what a search blends in is a candidate's own noise."""
    drawn, randn_tensor = [], torch_utils.randn_tensor

    def spy(*arguments, **settings):
        drawn.append(randn_tensor(*arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor", spy
    )
    pipe = with_scheduler(tiny_pipeline("sd"), "EulerAncestralDiscreteScheduler")
    own = make_noise(pipe, candidate_seeds(7, 0, 2)).flatten(1)
    search(pipe, method="bon", seeds=2, seed=7, num_inference_steps=2, guidance_scale=1.0)
    injected = torch.cat(drawn).flatten(1)
    similar = torch.corrcoef(torch.cat([own, injected]))[:2, 2:].abs()
    assert similar.max() < 0.4
    # with a tiny step Langevin's x' = sqrt(0.7) x + sqrt(0.3) z, so z is told by its steps
    one, two = search(tiny_pipeline("sd-turbo"), method="langevin", iterations=2,
                      learning_rate=1e-9, seed=7)  # fmt: skip
    z = (two.noise - 0.7**0.5 * one.noise) / 0.3**0.5
    assert torch.corrcoef(torch.stack([z.flatten(), one.noise.flatten()]))[0, 1].abs() < 0.4


def test_best_of_n_draws_the_same_pictures_everywhere():
    pipe = with_scheduler(tiny_pipeline("sd"), "EulerAncestralDiscreteScheduler")
    task = Task(pipe, PROMPT, {}, 5, load_reward(bright), num_inference_steps=2, batch_size=2)
    ours = run(parse_methods("bon=5")[0], [task], [None])[0][0].image
    theirs = search(pipe, method="bon", seeds=5, seed=5, num_inference_steps=2, batch_size=3)[-1]
    torch.testing.assert_close(ours, theirs.best_image, atol=1e-4, rtol=0)
    assert not torch.equal(theirs.best_noise, make_noise(pipe, [5])[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", sorted(BUILDERS.keys() - {"wan"}))  # videos are not searched
@pytest.mark.filterwarnings("ignore")  # of casts by .to(), which from_pretrained does without
def test_a_searched_noise_goes_back_into_a_bfloat16_pipeline(family, tmp_path):
    pipe = build(family).to(torch.bfloat16)
    side = min(64, image_size(pipe, None, None)[0])
    size = {"height": side, "width": side}
    settings = {"num_inference_steps": 2, **size}
    last = search(pipe, method="reno", iterations=2, **settings)[-1]
    assert last.best_noise.dtype == torch.float32
    save_noise(tmp_path / "n.safetensors", last.best_noise, prompt=PROMPT, seed=0)
    noise = load_noise(tmp_path / "n.safetensors", 1)
    assert noise.dtype == torch.float32
    start = make_noise(pipe, [0], **size).float()
    with torch.no_grad():
        again = generate(pipe, [PROMPT], latents=noise, seed=0, **settings)[0]
        first = generate(pipe, [PROMPT], seed=0, **settings)[0]
        given = generate(pipe, [PROMPT], latents=start, seed=0, **settings)
    torch.testing.assert_close(again, last.best_image, atol=0.05, rtol=0)
    assert torch.equal(given[0], first)
    assert align.decode(pipe, start).isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_are_no_latents():
    pipe = tiny_pipeline("sd")
    with pytest.raises(TypeError, match=r"latents are torch\.int64; they must be floating point"):
        generate(pipe, [PROMPT], latents=torch.zeros(1, 4, 8, 8, dtype=torch.long))


@pytest.mark.parametrize("pull", ["exact", "per-term"])
def test_a_negative_weight_pulls_pixels_back_from_outside(pull, tmp_path):
    """All pixels lie above 1 and the reward wants darker ones: the clamp has to let that pass, as
    it does where the weighted sum goes back."""
    pipe = build("sd-turbo").to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.bias.data += 20
    (tmp_path / "r.py").write_text("def mean(images, prompts):\n    return images.mean((1, 2, 3))")
    reward = load_reward(f"{tmp_path / 'r.py'}:mean=-3")
    paint = make_painter(pipe, PROMPT, num_inference_steps=1)
    evaluate = Evaluator(paint, Objective(reward, parts_of(reward)), PROMPT, None, Purse(), 8)
    noise = make_noise(pipe, [0, 1])
    right, apart = evaluate(noise, "sum"), evaluate(noise, pull)
    assert right.images.min() == 1
    assert right.gradients.norm() > 1e-6
    torch.testing.assert_close(-3 * apart.gradients, right.gradients)


def test_budgets_in_seconds_pay_for_scores():
    """Costs are given, so counts are what is tested: every method's picture costs the same time."""
    reward = load_reward(bright)
    costs = Costs(seconds=0.06, backward=0.8, score=0.05, slope=0.02)
    task = Task(tiny_pipeline("sd-turbo"), PROMPT, {}, 7, reward, batch_size=8, costs=costs)
    spent = {}
    names = "bon,carinox,reno,carinox-paper,langevin,zero-order,evolution"
    for method in parse_methods(names):
        found = run(method, [task], [Budget(4.0, "s")])[0][0].spent
        drawing = 0.01 * (found.generator_forwards + 0.8 * found.generator_backwards)
        scoring = 0.05 * found.reward_forwards + 0.02 * found.reward_backwards
        spent[method.label] = drawing + scoring
    assert max(spent.values()) <= 4.0 + 0.21  # the guard's first look at the best so far
    assert max(spent.values()) <= 1.15 * min(spent.values()), spent


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_at_equal_seconds_every_method_takes_about_the_same(remote):
    """With a reward of 50 ms a picture that computes or waits, by costs that are measured."""

    def slow(images, prompts):
        end = time.process_time() + 0.05 * len(images)
        if remote:
            time.sleep(0.05 * len(images))
        while not remote and time.process_time() < end:
            pass
        return bright(images, prompts)

    task = Task(tiny_pipeline("sd-turbo"), PROMPT, {}, 7, load_reward(slow), batch_size=8)
    task = replace(task, costs=measure_costs(task, gradients=True))
    spent = {}
    for method in parse_methods("bon,carinox,reno,carinox-paper,langevin,zero-order,evolution"):
        found = run(method, [task], [Budget(2.0, "s")])[0][0].spent
        # a busy machine takes its share of the clock's time, not of the processor's
        waited = 0.05 * found.reward_forwards if remote else 0.0
        spent[method.label] = waited + found.cpu_seconds
    assert max(spent.values()) <= 1.15 * min(spent.values()), spent


def test_a_remote_reward_is_priced_by_the_clock():
    from align.evaluation.spending import seconds_of

    assert seconds_of(lambda: time.sleep(0.05), torch.device("cpu")) >= 0.049


def test_a_purse_prices_images():
    purse = Purse(Budget(100, "nfe"), 1, backward_cost=2.0, score_cost=5.0, slope_cost=1.0)
    assert purse.price() == 6
    assert purse.price(1, 3) == 1 + 2 + 15 + 1
    assert (purse.fits(), purse.fits(1), purse.fits(images=3)) == (16, 11, 3)
    purse.generator_forwards = purse.reward_forwards = 10
    purse.generator_backwards = purse.reward_backwards = 4
    assert purse.forwards == 10 + 8 + 50 + 4
    small = Task(tiny_pipeline("sd-turbo"), PROMPT, {}, 0, None, costs=Costs(2.0, None, score=1.0))
    assert priced(Budget(0.1, "s"), small).fits() == 1
