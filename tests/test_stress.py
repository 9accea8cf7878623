"""`align rewards stress`: ascents against loops by hand, what they mean, the command."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import build, tiny_pipeline
from tiny_rewards import installed_weights

import align
from align.cli import main
from align.config.commands import StressConfig
from align.diffusion.denoisers import make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.sample import generate, make_noise, sample
from align.evaluation.statistics import difference, estimate
from align.evaluation.stress import _judge
from align.evaluation.stress_ascent import ascend
from align.evaluation.stress_report import save_plot, summarize
from align.evaluation.summary import as_dict
from align.evaluation.wording import signed
from align.language.prompts import PromptSet
from align.noise_opt.paint import make_painter
from align.rewards import load_judge, load_reward
from align.runs.folder import read_metrics
from align.scenes import verify

installed = installed_weights
PROMPTS = ["red", "two blue"]
SEEDS = [3, 8]
LENGTH = 0.05
REWARDS = """
def dark_corner(images, prompts):
    return -(images[:, :, :4, :4] - 0.2).square().mean((1, 2, 3)) * len(prompts[0])

def red(images, prompts):
    return images[:, 0].mean((1, 2))

def constant(images, prompts):
    return 0 * images.mean((1, 2, 3))

def cut_off(images, prompts):
    return images.detach().mean((1, 2, 3))

def stepwise(images, prompts):
    return images.mean((1, 2, 3)).round()

stepwise.differentiable = False
"""


def dark_corner(images, prompts):
    """A reward that differs by prompt and pixel."""
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
    return -(images[:, :, :4, :4] - 0.2).square().mean((1, 2, 3)) * lengths


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def moments(pipe, **settings):
    reward, judge = load_reward(dark_corner), load_judge(red)
    return list(ascend(pipe, PROMPTS, SEEDS, reward, judge, step_length=LENGTH, **settings))


def by_hand(point, norm, picture, steps, on_sphere):
    """One prompt's scores along the ascent: gradient steps written out."""
    scores = []
    for _ in range(steps + 1):
        point = point.detach().requires_grad_()
        image, prompt = picture(point)
        score = dark_corner(image, [prompt])
        (down,) = torch.autograd.grad(-score.sum(), point)
        scores.append((float(score.detach()), float(red(image, [prompt]).detach())))
        point = point - LENGTH * norm * down / down.norm()
        point = point * (norm / point.norm()) if on_sphere else point
    return scores


@pytest.mark.parametrize("name", ["sd", "flux-schnell", "lcm", "sana-sprint"])
def test_ascents_of_the_noise_are_those_of_a_loop_by_hand(name):
    pipe, side = tiny_pipeline(name), 32 if name.startswith("sana") else 16
    size = {"height": side, "width": side}
    drawn = {"num_inference_steps": 2, **size}
    found = moments(pipe, steps=3, **drawn)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        first = generate(pipe, [prompt], seed=seed, **drawn)
        assert torch.allclose(found[0].images[row], first[0], atol=1e-5)
        noise = make_noise(pipe, [seed], **size)

        def picture(point, prompt=prompt, seed=seed, shape=noise.shape):
            generator = torch.Generator().manual_seed(seed)
            torch.randn(shape, generator=generator)  # the starting noise
            make = {"generator": [generator], "grad_steps": "all", **drawn}
            return generate(pipe, [prompt], latents=point, **make), prompt

        scores = by_hand(noise, noise.norm(), picture, 3, on_sphere=True)
        assert [float(m.reward[row]) for m in found] == pytest.approx(
            [score for score, _ in scores], rel=2e-3
        )
        assert [float(m.judge[row]) for m in found] == pytest.approx(
            [judged for _, judged in scores], abs=2e-4
        )
        assert scores[-1][0] > scores[0][0]


def test_ascents_of_latents_leave_their_sphere():
    pipe = tiny_pipeline("sd")
    found = moments(pipe, steps=3, num_inference_steps=2, what="latents")
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        with torch.no_grad():
            latents = sample(
                make_denoiser(pipe, [prompt]),
                pipe.scheduler,
                make_noise(pipe, [seed]),
                num_inference_steps=2,
            )
        scores = by_hand(
            latents,
            latents.norm(),
            lambda point, prompt=prompt: (decode(pipe, point), prompt),
            3,
            on_sphere=False,
        )
        assert [float(m.reward[row]) for m in found] == pytest.approx(
            [score for score, _ in scores], rel=2e-3
        )


def test_the_last_steps_alone_can_carry_the_gradient():
    pipe = tiny_pipeline("sd")
    found = moments(pipe, steps=2, num_inference_steps=3, grad_steps=1)
    paint = make_painter(pipe, PROMPTS[0], num_inference_steps=3, grad_steps=1)
    noise = make_noise(pipe, SEEDS[:1])
    scores = by_hand(noise, noise.norm(), lambda p: (paint(p), PROMPTS[0]), 2, on_sphere=True)
    assert [float(m.reward[0]) for m in found] == pytest.approx([s for s, _ in scores], rel=2e-3)
    whole = moments(pipe, steps=2, num_inference_steps=3)
    assert float(whole[2].reward[0]) != pytest.approx(scores[2][0], rel=1e-4)


def test_a_prompt_without_gradient_stays_where_it_is():
    pipe = tiny_pipeline("sd")

    def first_alone(images, prompts):
        chosen = torch.tensor([1.0 if prompt == "red" else 0.0 for prompt in prompts])
        return chosen * images.mean((1, 2, 3))

    found = list(
        ascend(pipe, PROMPTS, SEEDS, load_reward(first_alone), load_judge(red), steps=2,
               num_inference_steps=1)
    )  # fmt: skip
    assert [m.moves.tolist() for m in found] == [[True, False], [True, False], [False, False]]
    assert torch.equal(found[2].images[1], found[0].images[1])
    assert not torch.equal(found[2].images[0], found[0].images[0])


def test_scores_that_are_not_finite_end_it():
    def broken(images, prompts):
        return images.mean((1, 2, 3)) / torch.tensor([1.0, 0.0])

    with pytest.raises(RuntimeError, match="the reward of 'two blue' is not finite at step 0"):
        next(ascend(tiny_pipeline("sd"), PROMPTS, SEEDS, load_reward(broken), load_judge(red),
                    num_inference_steps=1))  # fmt: skip


# what the judge does over six steps, by prompt: a real rise, then a fall
RISE = np.array([0.0, 0.4, 0.6, 0.55, 0.3, 0.2])
CATEGORIES = ["a"] * 10 + ["b"] * 10


def spread_over_prompts(course, seed=0):
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(len(course), 20))
    return np.asarray(course)[:, None] + noise


def test_a_rise_that_is_real_and_from_where_it_is_not():
    reward = spread_over_prompts(np.arange(6.0), seed=1)
    judge = spread_over_prompts(RISE)
    report = summarize(reward, judge, CATEGORIES, "scenes-clip", "scenes-vqa")
    assert report["best_step"] == 2
    falls = [k for k in range(3, 6) if difference(judge[2], judge[k], CATEGORIES).high < 0]
    assert report["falls_from"] == falls[0]
    assert falls[0] in (3, 4)
    for k, row in enumerate(report["steps"]):
        both = estimate(judge[k], CATEGORIES), difference(judge[0], judge[k], CATEGORIES)
        for name, known in zip(("judge", "judge_gain"), both, strict=True):
            assert row[name]["mean"] == pytest.approx(known.mean)
            assert [row[name]["low"], row[name]["high"]] == pytest.approx([known.low, known.high])
        assert row["reward"]["mean"] == pytest.approx(reward[k].mean())
    gains, fall = report["steps"][2], difference(judge[2], judge[falls[0]], CATEGORIES)
    assert report["sentence"] == (
        f"Up to step 2 (scenes-clip {gains['reward_gain']['mean']:+.3g}) the rise is real: "
        f"scenes-vqa {signed(gains['judge_gain'], 'judge')} on 20 prompts; from step {falls[0]} "
        f"(scenes-clip {(reward[falls[0]] - reward[0]).mean():+.3g}) it is not: "
        f"{signed(as_dict(fall), 'judge')}."
    )


@pytest.mark.parametrize(
    ("course", "noise", "said"),
    [
        (RISE, 0, "Up to step 2"),
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5], 0, "did not fall within 5 steps"),
        ([0, -0.3, -0.5, -0.5, -0.6, -0.6], 0, "is at its best at the start (20 prompts); from st"),
        ([0, 0.001, 0.002, 0, 0, 0], 1, "is known to be real"),
    ],
)
def test_what_the_sentence_says(course, noise, said):
    judge = spread_over_prompts(course)
    judge += noise * np.random.default_rng(5).normal(size=judge.shape)
    report = summarize(judge + 1, judge, CATEGORIES, "a", "b")
    assert said in report["sentence"]
    assert report["sentence"].endswith(".")


def test_a_judge_that_is_a_share_keeps_to_its_bounds_and_one_prompt_has_no_interval(tmp_path):
    exact = np.zeros((3, 8))
    exact[1:, :4] = 1
    report = summarize(exact, exact, [""] * 8, "a", "verifier")
    assert report["measure"] == "exact"
    assert all(0 <= row["judge"]["low"] <= row["judge"]["high"] <= 1 for row in report["steps"])
    assert "+50 points" in report["sentence"]
    alone = summarize(exact[:, :1], exact[:, :1], [""], "a", "b")
    assert "spread unknown" in alone["sentence"]
    save_plot(tmp_path / "one.png", alone, "step")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 400
    still = summarize(exact, exact, [""] * 8, "a", "b", still=8)
    assert still["sentence"] == "The gradient of a is 0 for every prompt, so nothing was raised."


@pytest.mark.parametrize("what", ["noise", "latents"])
def test_the_command_writes_what_it_found(tmp_path, capsys, what):
    out = tmp_path / "run"
    assert main([
        "rewards", "stress", "--reward", "scenes-clip", "--num-prompts", "9", "--steps", "1",
        "--batch-size", "4", "--what", what, "--out", str(out), "--device", "cpu", "--seed", "5",
    ]) == 0  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    report = json.loads((out / "stress.json").read_text())
    assert said == [report["sentence"], str(out)]
    rows = report["prompts"]
    assert len({row["category"] for row in rows}) == 9
    pipe = align.load_pipeline("embedded/scenes-turbo", device="cpu")
    prompts = [row["prompt"] for row in rows]
    images = generate(pipe, prompts, seed=5)
    assert [row["judge"][0] for row in rows] == verify(prompts, images)[0].tolist()
    first = load_reward("scenes-clip")(images, prompts)
    assert [row["reward"][0] for row in rows] == pytest.approx(first.tolist(), abs=1e-4)
    for k, step in enumerate(report["steps"]):
        for name in ("reward", "judge"):
            mean = np.mean([row[name][k] for row in rows])
            assert step[name]["mean"] == pytest.approx(mean, abs=1e-6)
    assert report["steps"][1]["reward_gain"]["mean"] > 0
    assert len(read_metrics(out)) == 3 * 2  # batches of 4, 4 and 1; the start and one step
    assert report["settings"]["what"] == what
    with Image.open(out / "before-after.png") as picture:
        assert picture.size == (9 * 66 - 2, 2 * 66 - 2)
        shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        assert picture.info["prompt"].split("\n") == prompts
    assert (shown[:, :64, :64] - images[0]).abs().max() < 1.01 / 255
    assert (shown[:, 66:, :64] - images[0]).abs().max() > 2 / 255
    with Image.open(out / "stress.png") as picture:
        assert picture.width > 400


@pytest.mark.parametrize("name", ["hps", "image-reward", "detector:remove=dog"])
def test_published_rewards_are_stressed_too(tmp_path, installed, capsys, name):
    build("sd-turbo").save_pretrained(tmp_path / "turbo")
    (tmp_path / "prompts.txt").write_text("a dog\na red cube\n")
    assert main([
        "rewards", "stress", "--reward", name, "--judge", "clip", "--steps", "2", "--device", "cpu",
        "--model", str(tmp_path / "turbo"), "--prompts", str(tmp_path / "prompts.txt"),
        "--out", str(tmp_path / "run"),
    ]) == 0  # fmt: skip
    assert "clip" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "stress.json").read_text())
    values = np.array([row["reward"] for row in report["prompts"]])
    assert values.shape == (2, 3)
    assert (values[:, 1] > values[:, 0]).all()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, rewards of one's own and prompts."""
    folder = tmp_path_factory.mktemp("stress")
    build("sd").save_pretrained(folder / "sd")
    (folder / "r.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("red\nblue\n")
    (folder / "scenes.txt").write_text("a red circle\na red dog\n")
    return folder


BAD = [
    ([], "--reward is needed: what to raise"),
    (["--reward", "r.py:stepwise", "--judge", "r.py:red"], "r.py:stepwise has no gradient to fol"),
    (["--reward", "r.py:cut_off", "--judge", "r.py:red"], "returned scores without a gradient"),
    (["--reward", "r.py:red"], "no judge fits prompts.txt; give --judge"),
    (["--reward", "r.py:red", "--judge", "verifier"], "reads scenes prompts and 64x64 pictures on"),
    (["--reward", "r.py:red", "--judge", "scenes-clp"], "did you mean scenes-clip"),
    (["--reward", "r.py:red", "--judge", "r.py:red"], "the judge r.py:red is also what methods"),
    (["--reward", "verifier"], "is a judge, not a training signal"),
    (["--reward", "r.py:red", "--steps", "0"], "steps is 0; it must be at least 1"),
    (["--reward", "r.py:red", "--step-length", "0"], "step_length is 0.0; it must be more than 0"),
    (["--reward", "r.py:red", "--what", "weights"], "--what is 'weights'; it must be one of laten"),
    (["--reward", "r.py:red", "--prompts", "none.txt"], "no prompt file none.txt"),
    (["--reward", "scenes-detector", "--judge", "r.py:red", "--prompts", "scenes.txt"],
     "cannot read 'dog'"),
    (["--reward", "r.py:red", "--judge", "jpeg", "--grad-steps", "9", "--num-inference-steps", "2"],
     "grad_steps is 9"),
    (["--reward", "r.py:red", "--judge", "jpeg", "--scheduler", "Euler"], "scheduler is 'Euler'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_input_is_one_line_and_nothing_is_written(
    place, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(place)
    rest = ["--model", "sd", "--device", "cpu"]
    rest += [] if "--prompts" in arguments else ["--prompts", "prompts.txt"]
    assert main(["rewards", "stress", *arguments, *rest]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (place / "runs").exists()


def test_a_reward_that_never_changes_raises_nothing(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main([
        "rewards", "stress", "--reward", "r.py:constant", "--judge", "r.py:red", "--model", "sd",
        "--prompts", "prompts.txt", "--steps", "1", "--num-inference-steps", "1",
        "--device", "cpu", "--out", str(place / "constant"),
    ]) == 0  # fmt: skip
    assert "is 0 for every prompt, so nothing was raised" in capsys.readouterr().out


def test_a_judge_that_a_lora_was_trained_on_is_warned_of(tmp_path, caplog):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"reward": "scenes-vqa"}}))
    config = StressConfig(reward="scenes-clip", judge="scenes-vqa", lora=(str(tmp_path),))
    with caplog.at_level(logging.WARNING):
        _judge(config, PromptSet("mine", ["a red circle"], [{}]), tiny_pipeline("sd"))
    assert "the judge scenes-vqa is also what methods here were optimized for" in caplog.text
