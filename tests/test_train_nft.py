"""`align train --method nft`: its loss by definition, whole runs on every kind of model."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny import build
from train_helpers import run, small_config, small_session, weights

from align.alignprop.nft import first_spread, forward_loss
from align.alignprop.train import train
from align.diffusion.sample import generate
from align.models.load import load_pipeline
from align.models.lora import trained_parameters
from align.training.seeding import image_seed

NFT: dict[str, Any] = {"method": "nft", "group_size": 4, "batch_size": 8, "pair_timesteps": 2}


def light(images, prompts):
    """How bright an image is; no gradient, and none is taken."""
    with torch.no_grad():
        return images.double().flatten(1).mean(1)


def dark(images, prompts):
    return -light(images, prompts)


def flat(images, prompts):
    return torch.zeros(len(images))


for reward in (light, dark, flat):
    reward.differentiable = False


def gradients(pipe):
    return {n: p.grad.clone() for n, p in trained_parameters(pipe).items() if p.grad is not None}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_and_gradient_by_their_definition(tmp_path, prediction_type):
    """Made anew image by image and timestep by timestep, by autograd of the plain formula."""
    changes = {"kl_weight": 0.5, "nft_beta": 0.4, "advantage": "group", "old_decay": 0.5}
    session = small_session(tmp_path, reward=light, **NFT | changes)
    pipe, unet = session.pipe, session.pipe.unet
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    old = [w.clone() for w in session.sampler.old.weights]  # those before `randomize`
    part = forward_loss(session, 3, range(8))
    part.loss.backward()
    found = gradients(pipe)
    for parameter in trained_parameters(pipe).values():
        parameter.grad = None
    trained = list(trained_parameters(pipe).values())

    def with_old(call):
        new = [p.detach().clone() for p in trained]
        for p, w in zip(trained, old, strict=True):
            p.data.copy_(w)
        with torch.no_grad():
            value = call()
        for p, w in zip(trained, new, strict=True):
            p.data.copy_(w)
        return value

    from align.alignprop.nft import old_images

    drawn = old_images(session, 3, range(8))
    scores = light(drawn.images, []).view(2, 4)
    centred = (scores - scores.mean(1, keepdim=True)) / (
        scores.std(1, correction=0)[:, None] + 1e-4
    )
    assert centred.abs().max() < 5
    r = (centred.flatten() / 10) + 0.5
    total, kl = 0.0, 0.0
    for group in (0, 1):
        generator = torch.Generator().manual_seed(image_seed("pairs", 0, 3, group))
        noise = torch.randn((2, *drawn.latents.shape[1:]), generator=generator).double()
        t = (torch.arange(2) + torch.rand((1, 2), generator=generator)[0]) / 2
        for k, time in enumerate((t * 1000).long()):
            for image in range(4 * group, 4 * group + 4):
                clean = drawn.latents[image][None]
                text = drawn.embeds["prompt_embeds"][image][None]
                at = time[None]
                noised = pipe.scheduler.add_noise(clean, noise[k][None], at)
                right = {
                    "epsilon": noise[k][None],
                    "v_prediction": pipe.scheduler.get_velocity(clean, noise[k][None], at),
                    "sample": clean,
                }[prediction_type]
                call = lambda: unet(noised, at, encoder_hidden_states=text).sample.float()  # noqa: B023, E731
                output, former = call(), with_old(call)
                unet.disable_adapters()
                with torch.no_grad():
                    base = call()
                unet.enable_adapters()
                share = pipe.scheduler.alphas_cumprod[at]
                s, a = (1 - share).sqrt(), share.sqrt()
                weight = {"epsilon": s / (a + s), "v_prediction": s, "sample": 1.0}[prediction_type]
                for sign, q in ((1, r[image]), (-1, 1 - r[image])):
                    branch = former + sign * 0.4 * (output - former)
                    error = branch - right
                    norm = error.detach().abs().mean()
                    total = total + 5 * q / 0.4 * (weight * error.square().mean() / norm).sum()
                kl = kl + (output - base).square().mean()
    loss = total / 16 + 0.5 * kl / 16
    torch.testing.assert_close(
        part.loss.detach().double(), loss.detach().double(), rtol=1e-5, atol=0
    )
    loss.backward()
    for name, gradient in gradients(pipe).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_equal_scores_teach_nothing(tmp_path):
    """On policy and without a tie the gradient is exactly 0; the tie's is 0 at the base alone."""
    session = small_session(tmp_path / "a", reward=flat, advantage="mean", **NFT)
    forward_loss(session, 0, range(8)).loss.backward()
    assert not any(gradient.any() for gradient in gradients(session.pipe).values())
    tied = small_session(tmp_path / "b", reward=flat, advantage="mean", kl_weight=1.0, **NFT)
    forward_loss(tied, 0, range(8)).loss.backward()
    assert any(gradient.any() for gradient in gradients(tied.pipe).values())
    with pytest.raises(ValueError, match="in none of 2 updates did the reward tell two images"):
        run(tmp_path / "c", reward=flat, **NFT)


def test_negated_scores_negate_the_gradient(tmp_path):
    found = []
    for name, reward in (("light", light), ("dark", dark)):
        session = small_session(tmp_path / name, reward=reward, advantage="group", **NFT)
        forward_loss(session, 0, range(8)).loss.backward()
        found.append(gradients(session.pipe))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, -found[1][name], rtol=1e-4, atol=1e-8)


def test_flux_learns_at_the_guidance_of_its_images(tmp_path, monkeypatch):
    """A guidance that is the model's input is the same in draw and loss."""
    pipe, seen = build("flux-dev"), []
    forward = type(pipe.transformer).forward

    def spied(self, *args, **settings):
        seen.append(float(settings["guidance"][0]))
        return forward(self, *args, **settings)

    monkeypatch.setattr(type(pipe.transformer), "forward", spied)
    run(tmp_path, reward=light, pipe=pipe, steps=1, height=16, width=16, guidance_scale=2.5, **{
        name: value for name, value in NFT.items() if name != "guidance_scale"
    })  # fmt: skip
    assert set(seen) == {2.5}


@pytest.mark.parametrize("old_decay", [0.0, 0.9])
def test_the_split_a_stop_and_a_resume_change_nothing(tmp_path, old_decay):
    settings = NFT | {"steps": 4, "checkpoint_every": 1, "learning_rate": 0.01}
    settings |= {"old_decay": old_decay, "kl_weight": 0.1}
    whole = run(tmp_path / "whole", dtype=torch.float64, reward=light, **settings)[1]
    split = run(
        tmp_path / "split", dtype=torch.float64, reward=light, micro_batch_size=4, **settings
    )[1]
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-7, rtol=0)
    stop = lambda record: record["step"] == 2  # noqa: E731
    stopped = run(tmp_path / "stopped", reward=light, on_step=stop, **settings)[0]
    assert stopped.steps == 2
    resumed = settings | {"out": None, "resume": str(tmp_path / "stopped" / "run")}
    again = run(tmp_path / "stopped", reward=light, **resumed)[1]
    once = run(tmp_path / "once", reward=light, **settings)[1]
    assert torch.equal(weights(again), weights(once))


def test_the_first_advantages_are_known_before_the_first_update(tmp_path):
    """By one update's images, drawn once more, whatever the split."""
    spreads = []
    for micro in (8, 4):
        folder = tmp_path / str(micro)
        session = small_session(folder, reward=light, micro_batch_size=micro, **NFT)
        spreads.append(first_spread(session))
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-9)
    assert spreads[0] > 0


def brightness_of(lora=()):
    """By a model that denoises, from noises that no update saw."""
    pipe = load_pipeline("embedded/scenes", lora=lora)
    size = {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 32, "width": 32}
    with torch.no_grad():
        return light(generate(pipe, ["a red circle", "two blue squares"] * 12, seed=1, **size), [])


@pytest.mark.parametrize(("reward", "sign"), [(light, 1), (dark, -1)], ids=["light", "dark"])
def test_a_reward_without_gradient_rises(tmp_path, reward, sign):
    torch.set_num_threads(1)
    few = {"batch_size": 32, "group_size": 8, "pair_timesteps": 4, "lora_rank": 8}
    size = {"model": "embedded/scenes", "prompts": "scenes-heldout-a", "height": 32, "width": 32}
    config = small_config(tmp_path, **NFT | few | size, steps=8, learning_rate=2e-3)
    result = train(config, reward=reward)
    rise = sign * (brightness_of((str(result.out),)) - brightness_of())
    assert rise.mean() > 3 * rise.std() / len(rise) ** 0.5 > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_size": 1}, "group_size is 1; at least 2 images can be compared"),
        ({"batch_size": 6}, "batch_size is 6; it must be a multiple of group_size, which is 4"),
        ({"nft_beta": 0.0}, "nft_beta"),
        ({"old_decay": 1.5}, "old_decay"),
        ({"advantage": "rank"}, "advantage"),
        ({"pairs": "x.csv"}, "nft learns from images of its own, dpo and sft from pairs"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_do_not_fit(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, **NFT | changes)


def test_the_record_says_what_to_watch(tmp_path):
    result, _ = run(tmp_path, reward=light, **NFT)
    record = result.metrics[-1]
    figures = ("clipped", "moved", "latent_norm", "brightness", "flat_groups", "reward_std")
    assert all(isinstance(record[name], float) for name in figures)
    assert record["window"] == "nft"
    assert dataclasses.is_dataclass(result)
