"""Drawing, rewards, searches and NAR on a device that refuses what a CUDA device refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from pretend_device import device as device
from test_families import size_of
from tiny import BUILDERS, build
from tiny_rewards import DETECTORS, NETWORKS
from tiny_rewards import PROMPTS as PHOTOS
from tiny_rewards import installed_weights as installed_weights

import align
from align.cli import main
from align.config.nar import NarTokenizerConfig
from align.config.optimize import SEARCHES
from align.diffusion.sample import generate, make_noise
from align.nar.load import load_nar_pipeline
from align.nar.training.tokenizer import train_tokenizer
from align.nar.training.train import train_nar
from align.noise_opt.records import Setup
from align.rewards import JUDGES, REWARDS, load_judge, load_reward
from align.runs.folder import read_metrics
from align.scenes import parse, render
from tests.nar.align_helpers import run as align_nar
from tests.nar.align_helpers import tiny_pipe
from tests.nar.test_train import config as nar_config
from tests.nar.test_train import folder as folder

MIXED = "same device"
SCENE = "two green stars"
DRAWN = {"seed": 3, "num_inference_steps": 2}


def often(names, known):
    """These names, and the other known ones for the slow tests."""
    rest = [pytest.param(name, marks=pytest.mark.slow) for name in known if name not in names]
    return [*names, *rest]


# --- the device itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mixture",
    [
        lambda here, there: there + here,
        lambda here, there: here * there,
        lambda here, there: here.add_(there[0, 0]),
        lambda here, there: there @ here,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: torch.stack([there[0, 0], here[0, 0]]),
        lambda here, there: torch.where(here > 0, there, there),
        lambda here, there: F.linear(here, there),
        lambda here, there: F.embedding(here.long(), there),
        lambda here, there: there.gather(0, here.long()),
        lambda here, there: F.mse_loss(there, here),
    ],
)
def test_mixtures_fail_as_they_do_on_a_card(device, mixture):
    ones = torch.ones(3, 3)
    assert mixture(ones.clone(), ones.clone()) is not None
    with pytest.raises(RuntimeError, match="device"):
        mixture(ones, ones.to(device))


def test_what_a_card_lets_pass(device):
    ones, index = torch.ones(3, 3, device=device), torch.tensor([0, 2])
    assert (ones * torch.tensor(2.0)).device == device
    assert torch.where(ones > 0, ones, torch.tensor(0.5)).sum().item() == 9
    assert ones[index].shape == (2, 3)
    ones[index] = 5.0
    ones[1].copy_(torch.zeros(3))
    assert ones.tolist() == [[5.0] * 3, [0.0] * 3, [5.0] * 3]
    with pytest.raises(RuntimeError, match="device"):
        ones.cpu()[index.to(device)]
    with pytest.raises(TypeError, match="numpy"):
        ones.numpy()


def test_random_numbers_are_the_device_s_own(device):
    generator = torch.Generator().manual_seed(1)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device=device, generator=generator)
    drawn = randn_tensor((2,), generator=generator, device=device)  # drawn on the CPU, and moved
    assert drawn.device == device
    torch.manual_seed(0)
    first, here = torch.rand(2, device=device).cpu(), torch.rand(2)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(2), here), "the device has drawn from the CPU's stream"
    assert torch.equal(torch.rand(2, device=device).cpu(), first)


def test_views_gradients_and_modules(device):
    torch.manual_seed(0)
    made = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.GroupNorm(2, 4),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    )
    gradients = []
    for place in ("cpu", device):
        made.to(place).zero_grad()
        pixels = torch.linspace(0, 1, 96).view(2, 3, 4, 4).sin().to(place)
        pixels[:, 0].mul_(2)  # through a view
        made(pixels).square().sum().backward()
        gradients.append([p.grad.cpu() for p in made.parameters()])
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError):
        made(pixels.cpu())


# --- drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", often(["sd", "flux-dev", "z-image", "qwen-image"], BUILDERS))
def test_the_pictures_are_those_of_the_cpu(device, name):
    pipe, settings = build(name), DRAWN | size_of(name)
    expected = generate(pipe, ["a", "b c"], **settings)
    actual = generate(pipe.to(device), ["a", "b c"], grad_steps=1, **settings)
    assert actual.device == device
    torch.testing.assert_close(actual.detach().cpu(), expected, atol=1e-4, rtol=0)


def test_commands_take_the_best_device_for_their_reward_as_well(device, tmp_path):
    arguments = ["--reward", "scenes-clip,jpeg=0.1", "--out", str(tmp_path / "run")]
    size = ["--model", "embedded/scenes", "--num-inference-steps", "2"]
    assert not main(["generate", SCENE, *size, *arguments])
    (record,) = read_metrics(tmp_path / "run")
    assert np.isfinite(record["reward"])
    search = ["--method", "carinox", "--seeds", "2", "--iterations", "2", "--overwrite"]
    assert not main(["optimize", SCENE, *size, *search, *arguments])
    picture = str(next((tmp_path / "run").rglob("*.png")))
    assert not main(["rewards", "explain", SCENE, picture, "--reward", "scenes-vqa"])


@pytest.mark.slow
def test_methods_are_compared(device, tmp_path):
    methods = ["--methods", "base,bon-2,carinox", "--per-category", "1", "--budgets", "8nfe"]
    few = ["--num-inference-steps", "2", "--out", str(tmp_path / "run"), "--repeats", "1"]
    assert not main(["compare", "--model", "embedded/scenes", *methods, *few])


# --- rewards ----------------------------------------------------------------------------------

USUAL = ["scenes-clip", "jpeg"]
ALL = [*dict.fromkeys([*NETWORKS, *DETECTORS, *REWARDS])]


def scores_on(place, reward, pictures, prompts):
    """Scores, and the pictures' gradient where there is one."""
    pixels = pictures.to(place).requires_grad_(reward.differentiable)
    scores = reward(pixels, prompts)
    assert scores.device.type == torch.device(place).type
    slopes = torch.autograd.grad(scores.sum(), pixels) if reward.differentiable else ()
    return [part.detach().cpu() for part in (scores, *slopes)]


@pytest.mark.parametrize("name", often(USUAL, ALL))
def test_rewards_score_where_the_pictures_are(device, installed_weights, name):
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = [SCENE, "a red circle"] if name.startswith("scenes") else list(PHOTOS)
    reward = (load_judge if name == "nsfw" else load_reward)(name)
    expected = scores_on("cpu", reward, pictures, prompts)
    actual = scores_on(device, reward, pictures, prompts)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def own_numbers(images, prompts):
    """A user's, whose numbers are on no device."""
    return [float(len(prompt)) for prompt in prompts]


own_numbers.differentiable = False


def test_terms_of_every_kind_meet_on_the_device(device):
    picture = torch.from_numpy(render(parse(SCENE))).permute(2, 0, 1)[None] / 255
    judge = load_judge(f"scenes-clip,min({','.join(JUDGES)}),jpeg=0.1", device)
    assert judge(picture, [SCENE]).device == device  # pictures of the CPU are moved
    assert load_reward(own_numbers)(picture.to(device), [SCENE]).device == device


# --- searches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", often(["carinox"], SEARCHES))
def test_searches(device, method):
    pipe = build("sd-turbo").to(device)
    config = align.OptimizeConfig(method=method, iterations=2, seeds=2, backward_cost=1.0)
    steps = list(align.optimize(pipe, "two dogs", "jpeg,jpeg-complexity=0.5", config))
    assert np.isfinite(steps[-1].best_total)
    assert steps[-1].best_image.device == device


# --- NAR --------------------------------------------------------------------------------------


def generators(count=1):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_nar_draws_the_pictures_of_the_cpu(device):
    pipe, pictures = tiny_pipe(), []
    settings = {"guidance_scale": 2.0, "top_k": 5, "top_p": 0.9, "output_type": "pt"}
    for place in ("cpu", device):
        pictures.append(pipe.to(place)(["a star"], generator=generators(), **settings).images.cpu())
    torch.testing.assert_close(*pictures)


@pytest.mark.parametrize(
    "name", ["nar-scenes", pytest.param("nar-scenes-video", marks=pytest.mark.slow)]
)
def test_embedded_nar(device, name, tmp_path):
    prompt = SCENE if name == "nar-scenes" else "a red circle moving right"
    arguments = ["--model", f"embedded/{name}", "--out", str(tmp_path), "--overwrite"]
    assert not main(["nar", "generate", prompt, *arguments, "--reward", "jpeg", "--best-of", "2"])
    assert load_nar_pipeline(f"embedded/{name}").device == device


@pytest.mark.parametrize("method", ["grpo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_nar_is_aligned_and_goes_on(device, method, tmp_path):
    settings = {"reward": "jpeg", "method": method, "device": None, "checkpoint_every": 1}
    result, pipe = align_nar(tmp_path, pipe=tiny_pipe().to(device), steps=1, **settings)
    assert pipe.transformer.device == device
    resume = str(result.out)
    result, _ = align_nar(tmp_path, pipe=tiny_pipe().to(device), steps=2, resume=resume, **settings)
    assert [record["step"] for record in result.metrics] == [1, 2]
    assert result.metrics[-1]["grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["class", "text"])
def test_nar_is_trained_from_pictures(device, folder, tmp_path, condition):
    few = {"steps": 2, "batch_size": 4, "device": None, "mixed_precision": "no", "threads": 1}
    small = {"image_size": 16, "patch": 4, "width": 8, "levels": (5, 5)}
    out = str(tmp_path / "tokenizer")
    tokenizer = train_tokenizer(NarTokenizerConfig(data=str(folder), out=out, **small, **few))
    settings = few | {"condition": condition, "ema_decay": 0.9}
    train_nar(nar_config(folder, tokenizer, tmp_path / "run", **settings))
    assert len(read_metrics(tmp_path / "run")) == 2


# --- planted mixtures: what the tests above would say of each ---------------------------------


def test_a_mixture_in_sampling_is_caught(device, monkeypatch):
    pipe = build("sd").to(device)
    latents = make_noise(pipe, [0, 1]).cpu()
    monkeypatch.setattr("align.diffusion.sample._starting_noise", lambda *_: latents)
    with pytest.raises(RuntimeError, match=r"device|type"):
        generate(pipe, ["a", "b"], **DRAWN)


def test_a_mixture_in_a_reward_is_caught(device, monkeypatch):
    reward = load_reward("scenes-clip", device)
    tower = reward.functions["scenes-clip"].image_tower
    own = tower.forward
    monkeypatch.setattr(tower, "forward", lambda images: own(images).cpu())
    with pytest.raises(RuntimeError, match=MIXED):
        reward(torch.rand(1, 3, 64, 64), [SCENE])


def test_a_mixture_in_a_judge_is_caught(device, monkeypatch):
    planted = lambda index: lambda images, prompts: torch.zeros(len(images))  # noqa: E731
    monkeypatch.setattr("align.rewards.judges._verdict", planted)
    judge = load_judge("verifier,jpeg", device)
    with pytest.raises(RuntimeError, match=MIXED):
        judge(torch.rand(1, 3, 64, 64), [SCENE])


def test_a_mixture_in_a_search_is_caught(device, monkeypatch):
    planted = lambda setup, noise: torch.randn(noise.shape, generator=setup.fresh)  # noqa: E731
    monkeypatch.setattr(Setup, "normal_like", planted)
    config = align.OptimizeConfig(method="langevin", iterations=3, backward_cost=1.0)
    with pytest.raises(RuntimeError, match=MIXED):
        list(align.optimize(build("sd-turbo").to(device), "two dogs", "jpeg", config))


def test_a_mixture_in_nar_is_caught(device, monkeypatch):
    pipe = tiny_pipe().to(device)
    tables = pipe.transformer.tables(torch.device("cpu"))
    monkeypatch.setattr(pipe.transformer, "tables", lambda _: tables)
    with pytest.raises(RuntimeError, match="device"):
        pipe(["a star"], generator=generators(), output_type="pt")
