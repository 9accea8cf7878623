"""The gradient of every window, against finite differences of what the window means."""

import pytest
import torch
from tiny import build, with_scheduler
from train_helpers import brightness, small_session

from align.alignprop.rollout import rollout
from align.alignprop.update import batch_loss
from align.alignprop.windows import draw_window
from align.config.windows import parse_window
from align.diffusion.denoisers import make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.sample import make_noise, sample
from align.language.prompts import draw_prompts
from align.training.seeding import image_seed

INDICES = [2, 3]
STEPS = 4


class Meaning:
    """The loss of a window by its definition, with a plain DDIM loop: predictions outside the
    window are numbers recorded at the start, those inside depend on the weights."""

    def __init__(self, session, update=0):
        c, self.pipe, self.session = session.config, session.pipe, session
        rows = draw_prompts(len(session.prompts), seed=c.seed, update=update, indices=INDICES)
        self.prompts = [session.prompts.prompts[row] for row in rows]
        self.draw = draw_window(
            session.sampler.window, STEPS, seed=c.seed, update=update, indices=INDICES
        )
        self.denoise = make_denoiser(
            self.pipe,
            None,
            guidance_scale=c.guidance_scale,
            prompt_embeds=session.sampler.embed(self.prompts),
        )
        self.scheduler = self.pipe.scheduler
        self.scheduler.set_timesteps(STEPS)
        self.noises = {
            name: make_noise(self.pipe, [image_seed(name, c.seed, update, i) for i in INDICES])
            for name in ("noise", "fresh-0", "fresh-1")
        }
        self.inputs, self.outputs = [], []
        with torch.no_grad():
            self.clean = self.loop(record=True)

    def loop(self, record=False):
        latents = self.noises["noise"]
        for step, t in enumerate(self.scheduler.timesteps):
            seen = latents
            if not record and self.draw.detach_input:
                seen = self.inputs[step]
            output = self.denoise(seen, t)
            if record:
                self.inputs.append(latents)
                self.outputs.append(output)
            else:
                mask = torch.tensor(self.draw.kept[step]).view(-1, 1, 1, 1)
                output = torch.where(mask, output, self.outputs[step])
            latents = self.scheduler.step(output, t, latents).prev_sample
        return latents

    @torch.no_grad()
    def loss(self):
        if self.draw.fresh:
            t, finals = self.scheduler.timesteps[-1], []
            for name in ("fresh-0", "fresh-1"):
                noisy = self.scheduler.add_noise(self.clean, self.noises[name], t)
                finals.append(self.scheduler.step(self.denoise(noisy, t), t, noisy).prev_sample)
            latents = torch.cat(finals)
        elif self.draw.x0_at is not None:
            t, before = self.scheduler.timesteps[self.draw.x0_at], self.inputs[self.draw.x0_at]
            step = self.scheduler.step(self.denoise(before, t), t, before)
            latents = step.pred_original_sample
        else:
            latents = self.loop()
        images = decode(self.pipe, latents)
        assert images.min() > 0.02  # the clamp plays no part
        assert images.max() < 0.98
        return -brightness(images, self.prompts * (len(images) // len(self.prompts))).mean()


def relative_error(session, meaning):
    """Autograd of the training's own loss along a random direction, against central differences."""
    for parameter in session.parameters:
        parameter.grad = None
    value = batch_loss(session, 0, INDICES).loss
    value.backward()
    assert value.item() == pytest.approx(meaning.loss().item(), rel=1e-9)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(p.shape, generator=generator).to(p) for p in session.parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(session.parameters, directions, strict=True))
    values, width = [], 1e-4
    for sign in (1, -1):
        for p, d in zip(session.parameters, directions, strict=True):
            p.data += sign * width * d
        values.append(meaning.loss().item())
        for p, d in zip(session.parameters, directions, strict=True):
            p.data -= sign * width * d
    numeric = (values[0] - values[1]) / (2 * width)
    assert abs(numeric) > 1e-6  # there is something to compare
    return abs(slope.item() - numeric) / abs(numeric)


@pytest.mark.parametrize(
    ("window", "bound"),
    [
        ("1", 1e-4),
        ("2", 1e-4),
        ("all", 1e-4),
        ("random", 1e-3),
        ("random-per-sample", 1e-3),
        ("draft-lv:2", 1e-3),
        ("refl", 1e-3),
        ("sparse:2", 1e-3),
        ("sparse:0,2", 1e-3),
        ("drtune:2", 1e-3),
    ],
)
def test_finite_differences(tmp_path, window, bound):
    session = small_session(
        tmp_path, grad_window=window, num_inference_steps=STEPS, checkpointing=False
    )
    assert relative_error(session, Meaning(session)) <= bound


def gradients(session, update=0, indices=INDICES):
    for parameter in session.parameters:
        parameter.grad = None
    batch_loss(session, update, indices).loss.backward()
    return torch.cat([p.grad.flatten() for p in session.parameters])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_steps_share_is_clipped_and_the_chain_is_not(tmp_path, checkpointing):
    """Each step's gradient by its output, through all later steps, is clipped image by image, and
    then goes to the weights through that step alone."""
    most = 1e-3
    session = small_session(
        tmp_path,
        grad_window="all",
        num_inference_steps=STEPS,
        checkpointing=checkpointing,
        max_step_grad_norm=most,
    )
    clipped = gradients(session)
    meaning = Meaning(session)
    latents, outputs = meaning.noises["noise"], []
    for t in meaning.scheduler.timesteps:
        outputs.append(meaning.denoise(latents, t))
        latents = meaning.scheduler.step(outputs[-1], t, latents).prev_sample
    images = decode(session.pipe, latents)
    loss = -brightness(images, meaning.prompts).mean()
    by_output = torch.autograd.grad(loss, outputs)
    expected, norms = torch.zeros_like(clipped), []
    for t, seen, gradient in zip(
        meaning.scheduler.timesteps, meaning.inputs, by_output, strict=True
    ):
        norms += gradient.flatten(1).norm(dim=1).tolist()
        limit = most / len(INDICES)
        gradient *= (limit / gradient.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        own = torch.autograd.grad(meaning.denoise(seen, t), session.parameters, gradient)
        expected += torch.cat([g.flatten() for g in own])
    assert max(norms) > most  # something was clipped
    torch.testing.assert_close(clipped, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("window", ["2", "all", "draft-lv:2", "drtune:2"])
def test_checkpointing_changes_nothing(tmp_path, window):
    plain = gradients(small_session(tmp_path / "a", grad_window=window, checkpointing=False))
    again = gradients(small_session(tmp_path / "b", grad_window=window, checkpointing=True))
    assert torch.equal(plain, again)
    assert plain.abs().max() > 0


def test_equal_windows_give_equal_gradients(tmp_path):
    """All steps by count, by list, by a fixed random range; one step likewise."""
    full = gradients(small_session(tmp_path / "0", grad_window="all"))
    for number, window in enumerate(("3", "sparse:0,1,2", "random:3-3", "random-per-sample:3-3")):
        other = gradients(small_session(tmp_path / f"1{number}", grad_window=window))
        torch.testing.assert_close(other, full, rtol=1e-10, atol=0)
    last = gradients(small_session(tmp_path / "2", grad_window="1"))
    assert (last - full).norm() > 1e-3 * full.norm()


def test_detaching_the_unconditional_branch_cuts_that_one_alone(tmp_path):
    """By the gradient at both branches' embeddings; the value and the other branch's stay."""

    def loss_and_slopes(name, detach):
        session = small_session(tmp_path / name, grad_window="1", detach_uncond=detach)
        embeds = session.sampler.embed(session.prompts.prompts[: len(INDICES)])
        session.sampler.embed = lambda prompts: embeds
        both = [embeds[key].requires_grad_() for key in ("prompt_embeds", "negative_prompt_embeds")]
        loss = batch_loss(session, 0, INDICES).loss
        return loss.detach(), *torch.autograd.grad(loss, both, allow_unused=True)

    value, cond, uncond = loss_and_slopes("a", detach=False)
    same_value, same_cond, cut = loss_and_slopes("b", detach=True)
    assert cond.abs().max() > 1e-6
    assert uncond.abs().max() > 1e-6
    assert cut is None
    torch.testing.assert_close(same_value, value)
    torch.testing.assert_close(same_cond, cond)


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"]
)
@pytest.mark.parametrize("window", ["2", "sparse:0,2", "draft-lv:1", "refl"])
def test_other_schedulers(tmp_path, name, window):
    pipe = with_scheduler(build("sd").to(torch.float64), name)
    denoise = make_denoiser(pipe, ["a", "b"], guidance_scale=2.0)
    draw = draw_window(parse_window(window, 3), 3, seed=0, update=0, indices=[0, 1])
    pipe.unet.conv_out.requires_grad_(True)
    latents = rollout(
        denoise,
        pipe.scheduler,
        make_noise(pipe, [0, 1]),
        draw,
        fresh_noise=lambda n: make_noise(pipe, [10 + n, 20 + n]),
    )
    (grad,) = torch.autograd.grad(latents.square().mean(), pipe.unet.conv_out.weight)
    assert grad.abs().max() > 0
    if window in ("2", "sparse:0,2"):
        with torch.no_grad():
            plain = sample(denoise, pipe.scheduler, make_noise(pipe, [0, 1]), num_inference_steps=3)
        torch.testing.assert_close(latents, plain, rtol=1e-9, atol=1e-9)


def test_distance_to_the_base_pulls_back(tmp_path):
    """With the reward's weight at zero the gradient is that of the distance: down its slope."""
    session = small_session(
        tmp_path, grad_window="1", kl_weight=2.0, reward=lambda x, p: 0 * brightness(x, p)
    )
    part = batch_loss(session, 0, INDICES)
    assert part.kl > 0
    assert part.loss.item() == pytest.approx(2 * part.kl.item())
    gradient = gradients(session)
    before = part.kl.item()
    with torch.no_grad():
        start = 0
        for p in session.parameters:
            piece = gradient[start : start + p.numel()].view_as(p)
            p -= 1e-2 * piece / gradient.norm()
            start += p.numel()
    assert batch_loss(session, 0, INDICES).kl.item() < before
