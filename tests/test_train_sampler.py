"""The sampler that is stated is the one that draws: presets, commands, run.json, the card."""

import json

import diffusers
import pytest
import torch
from test_schedules import pndm
from tiny import build
from train_helpers import brightness, run, small_config, small_session

from align.alignprop.frozen import spare_decoder
from align.alignprop.memory import Needs, savings
from align.alignprop.self_check import self_check
from align.alignprop.session import open_session
from align.alignprop.update import batch_loss
from align.cli import main
from align.config.presets import PRESETS
from align.config.train import TrainConfig
from align.diffusion.denoisers import make_denoiser

NAMED = sorted(name for name, values in PRESETS.items() if "scheduler" in values)


def test_published_presets_name_the_sampler_of_their_source():
    # SD 3.5's flow is the source's own, of drtune and online RL
    own = {"embedded", "embedded-dpo", "embedded-turbo", "taste", "drtune"}
    own |= {"nft", "elbo-rl", "v-grpo", "flow-grpo"}
    assert PRESETS.keys() - set(NAMED) == own
    assert {TrainConfig(preset=name).scheduler for name in NAMED} == {"DDIMScheduler"}
    assert TrainConfig(preset="trl", scheduler=None).scheduler is None


def scores(folder, **changes):
    settings = {"num_inference_steps": 5, "steps": 2, "batch_size": 2, "micro_batch_size": 1}
    settings |= {"out": str(folder / "-".join(map(str, changes.values())))}
    session = open_session(small_config(folder, **settings | changes), reward=brightness,
                           pipe=pndm())  # fmt: skip
    assert type(session.pipe.scheduler) is diffusers.DDIMScheduler
    return batch_loss(session, 0, range(2)).scores


@pytest.mark.parametrize("preset", ["trl", "refl", "alignprop-k1", "draft-lv", "draft-plus"])
def test_presets_draw_by_their_sampler_on_a_model_that_ships_pndm(tmp_path, preset):
    assert (scores(tmp_path, preset=preset, eta=0.0) - scores(tmp_path, preset=preset, eta=1.0)
            ).abs().max() > 1e-3  # fmt: skip


def test_refl_draws_as_ddpm_does():
    """Its source's DDPM is DDIM with eta 1: the same step from the same noise."""
    config = pndm().scheduler.config
    ddim = diffusers.DDIMScheduler.from_config(config, clip_sample=False)
    ddpm = diffusers.DDPMScheduler.from_config(config, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 2, 4, 4, 4, generator=generator)
    for scheduler in (ddim, ddpm):
        scheduler.set_timesteps(40)
    assert torch.equal(ddim.timesteps, ddpm.timesteps)
    for t in ddim.timesteps[[0, 20, 38]]:
        first = ddim.step(output, t, x, eta=1.0, generator=torch.Generator().manual_seed(1))
        second = ddpm.step(output, t, x, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(first.prev_sample, second.prev_sample, atol=1e-5, rtol=1e-5)


def test_run_and_card_say_what_ran(tmp_path):
    result, pipe = run(tmp_path, pipe=pndm(), scheduler="DDIMScheduler", eta=1.0, steps=1)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert json.loads((result.out / "run.json").read_text())["scheduler"] == "DDIMScheduler"
    card = (result.out / "lora" / "README.md").read_text()
    assert "| sampling | DDIMScheduler, 3 steps, guidance 2, eta 1 |" in card
    own, _ = run(tmp_path / "own", pipe=pndm(), steps=1)
    assert json.loads((own.out / "run.json").read_text())["scheduler"] == "PNDMScheduler"
    assert "PNDMScheduler, 3 steps, guidance 2 |" in (own.out / "lora" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sd", {"scheduler": "EulerDiscreteScheduler", "eta": 1.0}, "eta is 1, which EulerDiscr"),
        ("sd", {"scheduler": "PNDMScheduler"}, "at least 4 denoising steps, not 3"),
        ("sd", {"scheduler": "LCMScheduler", "num_inference_steps": 60}, "original_steps"),
        ("sana-sprint", {"grad_window": "draft-lv", "height": 32, "width": 32}, "SCMScheduler"),
        (
            "sd",
            {"grad_window": "refl", "scheduler": "PNDMScheduler:skip_prk_steps=True"},
            "does not tell its prediction of x_0",
        ),
        ("sd3", {"preset": "draft-1"}, "'DDIMScheduler', which does not go with"),
    ],
)
def test_what_a_sampler_cannot_do_is_said_before_the_run(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        open_session(small_config(tmp_path, **changes), reward=brightness, pipe=build(name))
    assert not (tmp_path / "run").exists()


def test_self_check_of_one_step_sees_unit_noise(tmp_path, monkeypatch):
    seen = []

    def spied(pipe, *args, **settings):
        denoise = make_denoiser(pipe, *args, **settings)

        def predict(latents, timestep):
            seen.append(float(latents.std()))
            return denoise(latents, timestep)

        return type(denoise)(**vars(denoise) | {"predict": predict})

    monkeypatch.setattr("align.alignprop.session.make_denoiser", spied)
    pipe = build("sd-turbo")
    scheduler = pipe.scheduler
    config = small_config(
        tmp_path, num_inference_steps=1, guidance_scale=1.0, scheduler="HeunDiscreteScheduler"
    )
    findings = self_check(config, reward=brightness, pipe=pipe)
    assert all(finding.passed for finding in findings)
    assert seen
    assert seen == pytest.approx([1.0] * len(seen), abs=0.3)
    assert pipe.scheduler is scheduler  # given back as it was


def test_the_bound_on_a_steps_gradient_counts_fresh_noisings(tmp_path, monkeypatch):
    """Four equal noisings are one: their mean, bounded, is the gradient of one, bounded."""
    from align.alignprop import update
    from align.training.seeding import image_seed

    monkeypatch.setattr(
        update, "image_seed", lambda name, *rest: image_seed(name.split("-")[0], *rest)
    )

    def norm(count, bound):
        session = small_session(
            tmp_path / f"{count}-{bound}", grad_window=f"draft-lv:{count}", max_step_grad_norm=bound
        )
        loss = batch_loss(session, 0, range(2)).loss
        gradients = torch.autograd.grad(loss, session.parameters)
        return torch.cat([g.flatten() for g in gradients]).norm().item()

    free, bounded = norm(1, 0.0), norm(1, 1e-3)
    assert bounded < 0.5 * free
    assert norm(4, 0.0) == pytest.approx(free, rel=1e-6)
    assert norm(4, 1e-3) == pytest.approx(bounded, rel=1e-6)


def test_a_decoder_that_spares_memory_changes_no_pixel(tmp_path):
    """At any size: tiles would, as large pictures had them before."""
    pipe = build("sd")
    for side in (8, 16, 32):
        latents = torch.randn(1, 4, side // 2, side // 2)
        spare_decoder(pipe.vae, False)
        whole = pipe.vae.decode(latents).sample
        spare_decoder(pipe.vae, True)
        torch.testing.assert_close(pipe.vae.decode(latents).sample, whole, atol=1e-6, rtol=0)
        pipe.vae.enable_tiling()
        gap = (pipe.vae.decode(latents).sample - whole).abs().max()
        assert (gap > 1e-3) == (side > 16)

        at = small_config(tmp_path, height=side, width=side)
        order = [next(iter(change)) for change in savings(pipe, at)]
        assert order.index("vae_tiling") < order.index("block_checkpointing")


def test_the_estimate_counts_calls(tmp_path):
    def kept(**changes):
        config = small_config(tmp_path, num_inference_steps=5, **changes)
        return Needs(config, pipe=build("sd"))._kept_calls(config)

    assert kept(grad_window="2") == 2
    assert kept(grad_window="2", scheduler="HeunDiscreteScheduler") == 3
    assert kept(grad_window="all", scheduler="PNDMScheduler:skip_prk_steps=True") == 6
    assert kept(grad_window="refl", scheduler="HeunDiscreteScheduler") == 1
    assert kept(grad_window="draft-lv:3") == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampler") / "sd"
    pndm().save_pretrained(folder)
    return str(folder)


PROMPT = ["--prompts", "animals", "--judge", "jpeg", "--reward", "jpeg", "--per-category", "1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a", "--eta", "0.5"],
        ["train", "--prompts", "animals", "--reward", "jpeg", "--steps", "1", "--batch-size", "1"],
        ["optimize", "a", "--reward", "jpeg", "--method", "bon", "--seeds", "1"],
        ["evaluate", *PROMPT, "--num-images", "1"],
        ["compare", *PROMPT, "--methods", "base,bon", "--budget", "1images"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_draws_takes_a_scheduler(model, tmp_path, arguments, capsys):
    out = tmp_path / "run"
    common = ["--model", model, "--num-inference-steps", "2", "--device", "cpu"]
    scheduler = ["--scheduler", "DDIMScheduler:clip_sample=False"]
    assert main([*arguments, *common, *scheduler, "--out", str(out)]) == 0, capsys.readouterr().err
    saved = json.loads((out / "run.json").read_text())
    assert saved["scheduler"] == "DDIMScheduler"
    assert saved["config"]["scheduler"] == "DDIMScheduler:clip_sample=False"
    pictures = [png.read_bytes() for png in (out / "images").rglob("*.png")]
    assert pictures
    assert all(b"DDIMScheduler" in png for png in pictures)
    assert main([*arguments, *common, "--scheduler", "DDIM", "--out", str(tmp_path / "no")]) == 2
    assert "scheduler is 'DDIM'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
