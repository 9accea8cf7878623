"""`align train --method dpo`: ranked pairs, their loss and its gradient, whole runs."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import build, with_scheduler
from train_helpers import run, small_config, small_session, weights

from align.alignprop.memory import Needs, savings
from align.alignprop.preferences import diffusion_dpo_loss, preference_loss, ranked_pairs
from align.alignprop.self_check import self_check
from align.alignprop.session import check_method
from align.alignprop.train import train
from align.diffusion.denoisers import make_denoiser
from align.diffusion.sample import generate, make_noise, sample
from align.language.prompts import draw_prompts
from align.models.load import load_pipeline
from align.models.lora import trained_parameters
from align.models.lora_sources import lora_layers
from align.training.seeding import image_seed

DPO_REST: dict[str, Any] = {"method": "dpo", "group_size": 4, "batch_size": 8}
DPO = DPO_REST | {"pair_timesteps": 2}


def darkness(images, prompts):
    """A score without gradient: how dark an image is, in steps of a sixteenth."""
    return 1 - (16 * images.double()).round().flatten(1).mean(1) / 16


darkness.differentiable = False


def gradients(pipe):
    trained = trained_parameters(pipe).items()
    return {name: p.grad for name, p in trained if p.grad is not None}


def test_the_best_quarter_is_paired_with_the_worst():
    scores = torch.tensor([3.0, 0, 7, 1, 2, 6, 5, 4, 0, 1, 2, 3, 7, 6, 5, 4])
    best, worst = ranked_pairs(scores, 8)
    assert best.tolist() == [2, 5, 12, 13]
    assert worst.tolist() == [1, 3, 8, 9]
    best, worst = ranked_pairs(scores[:4], 2)
    assert (best.tolist(), worst.tolist()) == ([0, 2], [1, 3])


def test_loss_is_the_papers():
    won, lost = torch.tensor([0.0, 0.02, -0.01]), torch.tensor([0.0, -0.01, 0.03])
    loss = diffusion_dpo_loss(won, lost, 50.0)
    expected = [math.log(2), math.log1p(math.exp(-1.5)), math.log1p(math.exp(2.0))]
    torch.testing.assert_close(loss, torch.tensor(expected))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_gradient_and_value_by_their_definition(tmp_path, prediction_type):
    """The loss is made anew from diffusers' own noising and targets, its gradient by differences
    that leave the drawn images as they were."""
    session = small_session(tmp_path, kl_weight=0.5, beta=3.0, **DPO)
    c, pipe = session.config, session.pipe
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    indices = range(8)
    rows = draw_prompts(len(session.prompts), seed=c.seed, update=5, indices=[0, 1])
    prompts = [session.prompts.prompts[row] for row in rows for _ in range(4)]
    embeds = session.sampler.embed(prompts)
    seeds = [image_seed("noise", c.seed, 5, i) for i in indices]
    with torch.no_grad():
        latents = sample(
            make_denoiser(pipe, None, guidance_scale=2.0, prompt_embeds=embeds),
            pipe.scheduler,
            make_noise(pipe, seeds),
            num_inference_steps=3,
        )
    part = preference_loss(session, 5, indices)
    order = part.scores.view(2, 4).argsort(1) + torch.tensor([[0], [4]])
    moved = {n: p.detach().clone() for n, p in trained_parameters(pipe).items()}

    @torch.no_grad()
    def loss():
        total, distance = [], []
        for group in (0, 1):
            generator = torch.Generator().manual_seed(image_seed("pairs", c.seed, 5, group))
            noise = torch.randn((2, *latents.shape[1:]), generator=generator).double()
            t = (torch.arange(2) + torch.rand((1, 2), generator=generator)[0]) / 2
            t, gains = (t * 1000).long(), []
            for image in (order[group, -1], order[group, 0]):
                clean = latents[image].expand(2, -1, -1, -1)
                noised = pipe.scheduler.add_noise(clean, noise, t)
                text = embeds["prompt_embeds"][image].expand(2, -1, -1)
                output = pipe.unet(noised, t, encoder_hidden_states=text).sample
                pipe.unet.disable_adapters()
                base = pipe.unet(noised, t, encoder_hidden_states=text).sample
                pipe.unet.enable_adapters()
                target = {
                    "epsilon": noise,
                    "v_prediction": pipe.scheduler.get_velocity(clean, noise, t),
                    "sample": clean,
                }[prediction_type]
                error = [(o - target).square().mean((1, 2, 3)) for o in (output, base)]
                gains.append(error[1] - error[0])
                distance.append((output - base).square().mean())
            total.append(-F.logsigmoid(3.0 * (gains[0] - gains[1])).mean())
        return torch.stack(total).mean() + 0.5 * torch.stack(distance).mean()

    torch.testing.assert_close(part.loss.detach(), loss(), atol=1e-9, rtol=1e-6)
    part.loss.backward()
    generator = torch.Generator().manual_seed(0)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in moved.items()
    }
    values = []
    for step in (1e-5, -1e-5):
        for name, parameter in trained_parameters(pipe).items():
            parameter.data.copy_(moved[name] + step * direction[name])
        values.append(loss())
    slope = (values[0] - values[1]) / 2e-5
    slopes = [(gradient * direction[n]).sum() for n, gradient in gradients(pipe).items()]
    expected = torch.stack(slopes).sum()
    assert abs(expected) > 1e-6
    torch.testing.assert_close(expected, slope, atol=0, rtol=1e-4)


def test_images_that_are_all_alike_teach_nothing(tmp_path):
    session = small_session(tmp_path, reward=lambda x, prompts: 0 * x.mean((1, 2, 3)), **DPO)
    preference_loss(session, 0, range(8)).loss.backward()
    assert gradients(session.pipe)
    assert not any(gradient.any() for gradient in gradients(session.pipe).values())


def test_a_reward_without_gradient_rises(tmp_path):
    """On a model that denoises: a preference for dark pixels darkens the images of other seeds."""
    torch.set_num_threads(1)
    config = small_config(
        tmp_path,
        model="embedded/scenes",
        prompts="scenes-heldout-a",
        steps=10,
        learning_rate=2e-3,
        height=32,
        width=32,
        **DPO | {"batch_size": 32, "group_size": 8},
    )
    result = train(config, reward=darkness)
    assert result.metrics[0]["kl"] == 0
    assert result.metrics[-1]["kl"] > 1e-4
    scores = []
    for lora in ((), (str(result.out),)):
        pipe = load_pipeline("embedded/scenes", lora=lora)
        settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 32, "width": 32}
        prompts = ["a red circle", "two blue squares"] * 12
        scores.append(darkness(generate(pipe, prompts, seed=1, **settings), prompts))
    rise = scores[1] - scores[0]
    assert rise.mean() > 3 * rise.std() / len(rise) ** 0.5 > 0


def test_the_split_into_forward_passes_and_a_stop_change_nothing(tmp_path):
    settings = DPO | {"steps": 3, "checkpoint_every": 1, "learning_rate": 0.01}
    whole = run(tmp_path / "whole", dtype=torch.float64, **settings)[1]
    split = run(tmp_path / "split", dtype=torch.float64, micro_batch_size=4, **settings)[1]
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-9, rtol=0)
    stopped = run(tmp_path / "stopped", on_step=lambda r: r["step"] == 2, **settings)[0]
    assert stopped.steps == 2
    resumed = settings | {"out": None, "resume": str(tmp_path / "stopped" / "run")}
    again = run(tmp_path / "stopped", **resumed)[1]
    once = run(tmp_path / "once", **settings)[1]
    assert torch.equal(weights(again), weights(once))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_size": 1}, "group_size is 1; at least 2 images can be compared"),
        ({"group_size": 3}, "batch_size is 8; it must be a multiple of group_size, which is 3"),
        ({"micro_batch_size": 2}, "micro_batch_size is 2; it must be a multiple of group_size"),
        ({"beta": 0.0}, "beta"),
        ({"method": "ppo"}, "method"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_do_not_fit(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, **DPO | changes)


def test_models_that_are_refused(tmp_path):
    """DPO needs to know what a model predicts of a noised image; nft also many steps."""
    dpo = small_config(tmp_path, **DPO)
    for name in ("sd", "sd3", "flux-dev", "sana", "lcm"):
        check_method(dpo, build(name))
    check_method(dpo, with_scheduler(build("sd"), "EulerDiscreteScheduler"))
    with pytest.raises(ValueError, match=r"SanaSprintPipeline with SCMScheduler is none: use"):
        check_method(dpo, build("sana-sprint"))
    nft = small_config(tmp_path, **DPO | {"method": "nft"})
    for name in ("sd", "sd3", "flux-dev", "sana"):
        check_method(nft, build(name))
    for name in ("sd-turbo", "lcm", "flux-schnell"):
        with pytest.raises(ValueError, match=r"'nft', which blurs models .* few steps"):
            check_method(nft, build(name))


@pytest.mark.parametrize("name", ["sd3", "flux-dev", "sana"])
def test_a_flow_model_is_compared_with_its_base(tmp_path, name):
    """At the base nothing differs; an update moves the model."""
    side = 32 if name == "sana" else 16
    size = {"height": side, "width": side}
    result, _ = run(tmp_path, reward=darkness, pipe=build(name), **DPO | size)
    first, second = result.metrics
    assert first["kl"] == 0
    assert second["kl"] > 0
    assert first["grad_norm"] > 0


def test_the_estimate_counts_the_compared_images(tmp_path):
    """Half the timesteps a pair halve the activations; --memory goes down by whole groups."""
    one, two = (small_config(tmp_path, pair_timesteps=n, **DPO_REST) for n in (2, 4))
    needs = Needs(one, pipe=build("sd"))
    low, high = (needs.estimate(c).parts["activations"] for c in (one, two))
    assert low < high <= 2 * low
    micros = [s["micro_batch_size"] for s in savings(needs.pipe, two) if "micro_batch_size" in s]
    assert micros == [4]
    assert [s["pair_timesteps"] for s in savings(needs.pipe, two) if "pair_timesteps" in s] == [
        2,
        1,
    ]


def test_the_estimate_counts_the_merged_weights(tmp_path):
    """Of small images nothing else takes as much."""
    few = {"batch_size": 2, "group_size": 2, "pair_timesteps": 1, "height": 8, "width": 8}
    config = small_config(tmp_path, lora_targets=("*",), **DPO | few)
    needs = Needs(config, pipe=build("sd"))
    merged = sum(layer.get_base_layer().weight.nbytes for layer in lora_layers(needs.pipe))
    assert needs.estimate(config).parts["activations"] > merged
    some = small_config(tmp_path, lora_targets=("to_q",), **DPO | few)
    assert Needs(some, pipe=build("sd")).estimate(some).parts["activations"] < merged


def test_self_check_takes_a_reward_without_gradient(tmp_path):
    findings = self_check(small_config(tmp_path, **DPO), reward=darkness, pipe=build("sd"))
    assert [finding.name for finding in findings] == ["parity", "update"]
    assert "(dpo)" in findings[-1].text
