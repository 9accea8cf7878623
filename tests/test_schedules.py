"""Schedulers by name, copies of changed ones, and calls that are not one a step."""

from dataclasses import replace

import diffusers
import pytest
import torch
from tiny import BETAS, build, stable_diffusion, with_scheduler

from align.alignprop.rollout import check_window, rollout
from align.alignprop.windows import draw_window
from align.config.windows import parse_window
from align.diffusion.denoisers import make_denoiser
from align.diffusion.sample import generate, make_noise, sample
from align.diffusion.schedules import check_schedule, set_scheduler
from align.nar import NARScheduler
from align.nar.scheduler import changed_scheduler

PROMPTS = ["a red circle", "two green stars"]


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_same_as_own(pipe, **settings):
    """Our images are those of the pipeline's `__call__`."""
    settings = {"num_inference_steps": 4} | settings
    ours = generate(pipe, PROMPTS, generator=seeded(7, 8), **settings)
    if type(pipe).__name__ == "SanaPipeline":
        settings |= {"use_resolution_binning": False}
    own = pipe(PROMPTS, generator=seeded(7, 8), output_type="pt", **settings).images
    torch.testing.assert_close(ours, own, atol=1e-4, rtol=0)


def pndm():
    """A pipeline with the scheduler that Stable Diffusion 1.x ships."""
    pipe = build("sd")
    settings = BETAS | {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    pipe.scheduler = diffusers.PNDMScheduler(**settings)
    return pipe


def spied(pipe):
    """A denoiser and its calls so far: timestep, whether a graph is kept, the input's deviation."""
    calls, denoise = [], make_denoiser(pipe, ["a"], guidance_scale=1.0)

    def predict(latents, timestep):
        calls.append((int(timestep), torch.is_grad_enabled(), float(latents.detach().std())))
        return denoise(latents, timestep)

    return replace(denoise, predict=predict), calls


def rolled(pipe, window, steps):
    """The latents of a window, and the denoiser's calls."""
    pipe.unet.conv_out.requires_grad_(True)
    denoise, calls = spied(pipe)
    draw = draw_window(parse_window(window, steps), steps, seed=0, update=0, indices=[0])
    fresh = make_noise(pipe, [5])
    noise = make_noise(pipe, [0])
    return rollout(denoise, pipe.scheduler, noise, draw, fresh_noise=lambda n: fresh), calls


# --- copies keep what was set on the original ----------------------------------------------------


def test_what_a_pipeline_mends_in_an_old_scheduler_is_kept():
    torch.manual_seed(0)
    old = diffusers.DDIMScheduler(**BETAS, set_alpha_to_one=False)  # no steps_offset, clip_sample
    with pytest.warns(FutureWarning):
        pipe = stable_diffusion(old)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (1, False)
    seen = []
    generate(pipe, "a", seed=0, num_inference_steps=4, on_step=lambda i, t, x: seen.append(int(t)))
    assert seen == [751, 501, 251, 1]
    assert_same_as_own(pipe)
    set_scheduler(pipe, "DDPMScheduler")  # another class is told the same
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (1, False)
    assert_same_as_own(pipe)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sd3", lambda scheduler: scheduler.set_shift(7.0)),
        ("sd", lambda scheduler: scheduler.register_to_config(timestep_spacing="trailing")),
        ("sd", lambda scheduler: setattr(scheduler, "init_noise_sigma", 1.2)),
        (
            "sd",
            lambda scheduler: setattr(
                scheduler, "alphas_cumprod", scheduler.alphas_cumprod.square()
            ),
        ),
    ],
)
def test_what_the_user_sets_on_a_scheduler_is_kept(name, change):
    pipe = build(name)
    settings = {"num_inference_steps": 3, "height": 32, "width": 32}
    before = generate(pipe, PROMPTS, seed=7, **settings)
    change(pipe.scheduler)
    assert (generate(pipe, PROMPTS, seed=7, **settings) - before).abs().max() > 1e-4
    assert_same_as_own(pipe, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverSinglestepScheduler",
    ],
)
def test_runs_begin_without_the_state_of_earlier_ones_and_leave_none(name):
    pipe = with_scheduler(build("sd"), name)
    fresh = generate(pipe, PROMPTS, seed=7, num_inference_steps=5)
    pipe(PROMPTS, num_inference_steps=4, output_type="latent")  # leaves its outputs there
    left = {k: v for k, v in vars(pipe.scheduler).items() if isinstance(v, list | int | None)}
    left = {k: list(v) if isinstance(v, list) else v for k, v in left.items()}
    assert torch.equal(generate(pipe, PROMPTS, seed=7, num_inference_steps=5), fresh)
    for key, value in left.items():
        now = vars(pipe.scheduler)[key]
        assert now is value or now == value or all(a is b for a, b in zip(now, value, strict=True))


def test_a_nar_scheduler_keeps_what_was_set_later():
    scheduler = NARScheduler(guidance_scale=2.0)
    scheduler.register_to_config(temperature=0.5)
    changed = changed_scheduler(scheduler, {"top_k": 3}).config
    assert (changed.temperature, changed.guidance_scale, changed.top_k) == (0.5, 2.0, 3)


# --- by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "EulerDiscreteScheduler"])
def test_another_scheduler_is_that_of_from_config(name, caplog):
    pipe, own = pndm(), pndm()
    set_scheduler(pipe, name)
    assert not caplog.records
    own.scheduler = getattr(diffusers, name).from_config(own.scheduler.config)
    ours = generate(pipe, PROMPTS, generator=seeded(7, 8), num_inference_steps=4)
    theirs = own(PROMPTS, generator=seeded(7, 8), num_inference_steps=4, output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_keys_after_the_name():
    pipe, own = build("sd"), build("sd")
    settings = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    set_scheduler(
        pipe,
        "DPMSolverMultistepScheduler:use_karras_sigmas=true,algorithm_type=sde-dpmsolver++",
    )
    kind = diffusers.DPMSolverMultistepScheduler
    own.scheduler = kind.from_config(own.scheduler.config, **settings)
    run = {"num_inference_steps": 4, "generator": seeded(7)[0]}
    ours = generate(pipe, "a", **run)
    theirs = own("a", **run | {"generator": seeded(7)[0]}, output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_its_own_name_and_none_leave_the_scheduler():
    pipe = build("sd")
    own = pipe.scheduler
    for text in (None, "DDIMScheduler"):
        set_scheduler(pipe, text)
        assert pipe.scheduler is own
    set_scheduler(pipe, "DDIMScheduler:timestep_spacing=trailing")
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.config.steps_offset == 1


def test_a_clipping_scheduler_is_told_of(caplog):
    set_scheduler(pndm(), "DDIMScheduler")  # its file says nothing of clip_sample
    assert "DDIMScheduler clips its predictions to [-1, 1]" in caplog.text
    caplog.clear()
    set_scheduler(pndm(), "DDIMScheduler:clip_sample=False")
    set_scheduler(build("sd"), "DDPMScheduler")  # its file does
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sd3", "FlowMatchHeunDiscreteScheduler"),
        ("sd3", "UniPCMultistepScheduler"),
        ("sana", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_flows_take_the_schedulers_of_flows(name, text):
    pipe, settings = build(name), {"num_inference_steps": 3, "height": 32, "width": 32}
    set_scheduler(pipe, text)
    assert type(pipe.scheduler).__name__ == text
    assert pipe.scheduler.config.get("flow_shift", pipe.scheduler.config.get("shift")) == 3.0
    assert_same_as_own(pipe, **settings)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sd", "DDIMSheduler", "scheduler is 'DDIMSheduler'.* did you mean DDIMScheduler"),
        ("sd", "FlowMatchEulerDiscreteScheduler", "does not go with the DDIMScheduler of Stable"),
        ("flux-dev", "DDIMScheduler", "FluxPipeline; .*FlowMatchEulerDiscreteScheduler"),
        ("sana", "DDIMScheduler", "does not go with the DPMSolverMultistepScheduler of Sana"),
        ("sd", "EulerDiscreteScheduler:karras=1", "'karras=1' is no setting of EulerDisc"),
        ("sd", "DDIMScheduler:eta", "'eta' is no setting of DDIMScheduler.*KEY=VALUE"),
        ("sd", "DDIMScheduler:beta_schedule=x", "scheduler is 'DDIMScheduler:beta_schedule=x': "),
    ],
)
def test_wrong_names_and_keys(name, text, message):
    pipe = build(name)
    own = pipe.scheduler
    with pytest.raises(ValueError, match=message):
        set_scheduler(pipe, text)
    assert pipe.scheduler is own


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "PNDMScheduler", "DDPMScheduler", "UniPCMultistepScheduler"]
)
def test_eta_is_refused_where_it_would_be_ignored(name):
    pipe = with_scheduler(build("sd"), name)
    generate(pipe, "a", seed=0, num_inference_steps=4, eta=0.0)
    with pytest.raises(ValueError, match=rf"eta is 0.5, which {name} does not take; give 0, or"):
        generate(pipe, "a", seed=0, num_inference_steps=4, eta=0.5)


# --- calls and steps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        ("1", [0, 0, 0, 0, 0, 1]),
        ("2", [0, 0, 0, 0, 1, 1]),
        ("4", [0, 0, 1, 1, 1, 1]),
        ("all", [1, 1, 1, 1, 1, 1]),
        ("draft-lv:1", [0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_a_window_of_k_keeps_k_calls_of_pndm(window, kept):
    latents, calls = rolled(pndm(), window, 5)
    assert [call[1] for call in calls] == [bool(one) for one in kept]
    times = [801, 601, 601, 401, 201, 1]
    assert [call[0] for call in calls] == times + [1] * (len(kept) - 6)
    assert latents.requires_grad


def test_steps_of_runge_kutta_are_four_calls():
    pipe = with_scheduler(build("sd"), "PNDMScheduler")
    assert check_schedule(pipe, 5) == [0] * 4 + [1] * 4 + [2] * 4 + [3, 4]
    assert check_schedule(with_scheduler(build("sd"), "HeunDiscreteScheduler"), 3) == [
        0, 0, 1, 1, 2,
    ]  # fmt: skip
    kept = [call[1] for call in rolled(pipe, "1", 5)[1]]
    assert kept == [False] * 13 + [True]


@pytest.mark.parametrize("skip", [True, False])
def test_draft_lv_with_pndm_is_one_step_to_the_end(skip):
    """From the last timestep PNDM without a past makes the step of DDIM, and no repetition."""
    pipe = with_scheduler(build("sd"), "PNDMScheduler", skip_prk_steps=skip)
    latents, _ = rolled(pipe, "draft-lv:1", 5)
    denoise = make_denoiser(pipe, ["a"], guidance_scale=1.0)
    clean = sample(denoise, pipe.scheduler, make_noise(pipe, [0]), num_inference_steps=5)
    ddim = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    ddim.set_timesteps(5)
    t = ddim.timesteps[-1]
    noisy = ddim.add_noise(clean, make_noise(pipe, [5]), t)
    expected = ddim.step(denoise(noisy, t), t, noisy).prev_sample
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_pndm_is_not_entered_in_the_middle():
    pipe = pndm()
    with pytest.raises(ValueError, match="remembers former steps and cannot begin at call 3 of 6"):
        sample(
            make_denoiser(pipe, ["a"]),
            pipe.scheduler,
            make_noise(pipe, [0]),
            num_inference_steps=5,
            start=3,
        )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_schedules_of_pndm(steps):
    assert_same_as_own(pndm(), num_inference_steps=steps)
    pipe = with_scheduler(build("sd"), "PNDMScheduler")
    with pytest.raises(ValueError, match=rf"at least 4 denoising steps, not {steps}; PNDMSch"):
        generate(pipe, "a", seed=0, num_inference_steps=steps)
    set_scheduler(pipe, "PNDMScheduler:skip_prk_steps=True")
    assert_same_as_own(pipe, num_inference_steps=steps)


def test_a_schedule_longer_than_its_steps_by_rounding():
    """Trailing timesteps of 61 steps are 62 in diffusers; the last 60 calls are 60 steps."""
    pipe = with_scheduler(build("sd"), "DDIMScheduler", timestep_spacing="trailing")
    assert check_schedule(pipe, 61) == [0, *range(61)]


# --- noise is scaled once ------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_latents_before_step_0_are_not_scaled_again(steps):
    """DRaFT-LV of one step begins there: sd-turbo's Euler scales noise by 14.6."""
    pipe = build("sd-turbo")
    latents, calls = rolled(pipe, "draft-lv:1", steps)
    euler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    euler.set_timesteps(steps)
    denoise = make_denoiser(pipe, ["a"], guidance_scale=1.0)
    clean = sample(denoise, pipe.scheduler, make_noise(pipe, [0]), num_inference_steps=steps)
    t = euler.timesteps[-1:]
    noisy = euler.add_noise(clean, make_noise(pipe, [5]), t)
    scaled = euler.scale_model_input(noisy, t[0])
    assert calls[-1][2] == pytest.approx(float(scaled.std()), rel=1e-5)
    expected = euler.step(denoise(scaled, t[0]), t[0], noisy).prev_sample
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


def test_a_run_cut_before_step_0_is_the_whole():
    pipe = build("sd-turbo")
    denoise, noise = make_denoiser(pipe, ["a"]), make_noise(pipe, [0])
    whole = sample(denoise, pipe.scheduler, noise, num_inference_steps=1)
    before = sample(denoise, pipe.scheduler, noise, num_inference_steps=1, stop=0)
    torch.testing.assert_close(
        sample(denoise, pipe.scheduler, before, num_inference_steps=1, start=0), whole
    )


# --- windows that a scheduler cannot do ----------------------------------------------------------


def test_windows_that_a_scheduler_cannot_do_are_refused():
    refl, lv = parse_window("refl", 4), parse_window("draft-lv", 4)
    with pytest.raises(ValueError, match=r"PNDMScheduler does not tell .* --scheduler DDIM"):
        check_window(refl, pndm().scheduler)
    with pytest.raises(ValueError, match="SCMScheduler cannot put new noise on an image"):
        check_window(lv, build("sana-sprint").scheduler)
    for name in ("sd", "sd-turbo", "lcm", "sd3", "sana", "flux-dev"):
        for window in (refl, lv):
            check_window(window, build(name).scheduler)
    for name in ("DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "DDPMScheduler"):
        check_window(refl, with_scheduler(build("sd"), name).scheduler)
