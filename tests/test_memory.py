"""Memory: what an update needs by the estimate, settings that fit a card, and that they train."""

import pytest
import torch
from tiny import build
from train_helpers import brightness, run, small_config, small_session, train

from align.alignprop import memory
from align.alignprop.footprint import LiveBytes
from align.alignprop.frozen import prepare_pipeline
from align.alignprop.memory import Needs, plan
from align.alignprop.update import batch_loss
from align.cli import main
from align.config.train import TrainConfig
from align.diffusion.denoisers import encode_prompts, family_of
from align.models.empty import empty_pipeline

NAMES = ("sdxl", "pixart-alpha", "flux-dev", "sana", "z-image", "klein", "flux2-dev", "qwen-image")
NAMES = (*NAMES, "krea2", "chroma", "lumina2", "wan")
ALL_SAVINGS = {"block_checkpointing": True, "vae_tiling": True, "cache_embeddings": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        build(name).save_pretrained(root / name)
    return root


def config_of(folder, **changes):
    settings = {"model": str(folder / "flux-dev"), "reward": "jpeg", "prompts": "animals"}
    settings |= {"device": "cpu", "height": 32, "width": 32, "batch_size": 2}
    return TrainConfig(**settings | changes)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_pipeline_has_the_architecture_and_no_weights(folder, name):
    pipe, real = empty_pipeline(str(folder / name), torch.bfloat16), build(name)
    assert type(pipe) is type(real)
    for part, module in real.components.items():
        if isinstance(module, torch.nn.Module):
            shapes = {k: v.shape for k, v in module.named_parameters()}
            empty = dict(pipe.components[part].named_parameters())
            assert {k: v.shape for k, v in empty.items()} == shapes
            assert {v.device.type for v in empty.values()} == {"meta"}
    assert plan(config_of(folder, model=str(folder / name)))[1].total > 0
    if text_like := family_of(pipe).text_like:  # as long as the longest prompt's
        real, like = encode_prompts(build(name), 999 * "a ", guidance_scale=2.0), text_like(pipe)
        assert {k: v.shape for k, v in like.items()} == {k: real[k].shape for k in like}


def test_live_bytes_are_those_of_tensors_that_live():
    with LiveBytes() as counted:
        a = torch.empty(1000)
        b = a.view(10, 100) + 1
        del a
        b.add_(1)
    assert (counted.live, counted.peak) == (4000, 8000)
    del b
    assert counted.live == 0


def test_the_estimate_is_the_peak_of_a_real_update(tmp_path):
    """On the CPU, where real tensors can be counted as the estimate counts meta ones."""
    session = small_session(tmp_path, dtype=torch.float32, steps=1, grad_window="1")
    session.sampler.embed(session.prompts.prompts)
    with LiveBytes() as counted:
        session.model(session, 0, range(2)).loss.backward()
    needs = Needs(session.config, pipe=build("sd"))
    parts = needs.estimate(session.config).parts
    gradients = sum(p.numel() for p in session.parameters) * 4
    assert parts["activations"] == pytest.approx(counted.peak - gradients, rel=0.15)


def measured(folder, steps, **changes):
    """Bytes of a real update beside the weights: what the loss's graph holds, and the peak."""
    session = small_session(folder / str(steps), num_inference_steps=steps, **changes)
    session.sampler.embed(session.prompts.prompts)
    with LiveBytes() as counted:
        loss = batch_loss(session, 0, [0]).loss
        held = counted.live
        loss.backward()
    return held, counted.peak


@pytest.mark.parametrize("window", ["1", "draft-lv:2", "refl", "sparse:1", "drtune:2"])
def test_steps_outside_the_window_take_no_memory(tmp_path, window):
    few, many = (measured(tmp_path, n, grad_window=window, checkpointing=False) for n in (4, 20))
    for short, long in zip(few, many, strict=True):
        assert long <= 1.01 * short  # one more latent a step would be 2 % already


def test_steps_inside_the_window_take_memory(tmp_path):
    """What the test above measures does grow where it must."""
    few, many = (measured(tmp_path, n, grad_window="all", checkpointing=False) for n in (4, 20))
    for short, long in zip(few, many, strict=True):
        assert long > 3 * short


def test_the_estimate_knows_what_saves_memory(folder):
    needs = Needs(config_of(folder))

    def activations(**changes):
        changes = {"checkpointing": False, "num_inference_steps": 10} | changes
        return needs.estimate(config_of(folder, **changes)).parts["activations"]

    whole = activations(grad_window="all")
    assert activations(grad_window="5") < 0.7 * whole
    assert activations(grad_window="all", checkpointing=True) < 0.3 * whole
    assert activations(grad_window="1") == activations(grad_window="1", num_inference_steps=50)
    once = activations(grad_window="1", checkpointing=True)
    blocks = activations(grad_window="1", checkpointing=True, block_checkpointing=True)
    assert activations(grad_window="1", checkpointing=True, micro_batch_size=1) < 0.6 * once
    assert blocks <= once
    parts = needs.estimate(config_of(folder, cache_embeddings=True)).parts
    assert parts["text encoders"] < needs.estimate(config_of(folder)).parts["text encoders"]
    full, four = (needs.estimate(config_of(folder, quantize=q)).parts for q in (None, "4bit"))
    assert four["denoiser"] < 0.6 * full["denoiser"]


def test_settings_change_one_by_one_until_they_fit(folder, monkeypatch):
    free = plan(config_of(folder))[1].total
    monkeypatch.setattr(memory, "memory_limit", lambda config: free - 1)
    config, estimate = plan(config_of(folder, memory="12gb"))
    assert estimate.total < free
    assert config.cache_embeddings
    assert not config.block_checkpointing  # enough is enough
    monkeypatch.setattr(memory, "memory_limit", lambda config: 1)
    monkeypatch.setattr(memory, "savings", lambda pipe, config: iter([{"vae_tiling": True}]))
    with pytest.raises(MemoryError, match=r"does not fit 12gb: the smallest setting needs .* GiB"):
        plan(config_of(folder, memory="12gb"))


def test_cached_tiled_and_recomputed_training_is_the_same(tmp_path):
    results = []
    for name, changes in (("plain", {}), ("small", ALL_SAVINGS)):
        session = small_session(tmp_path / name, checkpointing=False, **changes)
        if changes:
            session.sampler.embed.keep(session.prompts.prompts)
            assert session.pipe.text_encoder is None
            assert session.pipe.vae.use_slicing
            assert session.pipe.unet.is_gradient_checkpointing
        loss = session.model(session, 0, range(2)).loss
        results.append([loss, *torch.autograd.grad(loss, session.parameters)])
    for plain, small in zip(*results, strict=True):
        torch.testing.assert_close(small, plain, atol=1e-10, rtol=1e-8)
    with pytest.raises(ValueError, match=r"'new' was not encoded before the text encoders went"):
        session.sampler.embed(["new"])


def test_an_autoencoder_of_videos_is_made_ready_for_a_card(tmp_path):
    """Its kernels have no channels-last format."""
    pipe, config = build("qwen-image"), small_config(tmp_path, vae_tiling=True)
    prepare_pipeline(config, pipe, torch.device("cuda"))
    assert pipe.vae.use_slicing
    assert not pipe.vae.use_tiling


def test_a_run_with_cached_embeddings(tmp_path):
    result, pipe = run(
        tmp_path, steps=1, judge="jpeg", judge_prompts="animals", judge_images=2, **ALL_SAVINGS
    )
    assert result.steps == 1
    assert pipe.text_encoder is None


def test_float16_trains_with_the_sdxl_autoencoder_upcast(tmp_path):
    pipe = build("sdxl").to(torch.float16)
    (tmp_path / "prompts.txt").write_text("a\nb")
    config = small_config(tmp_path, model="tiny", grad_window="1", steps=1)
    result = train(config, reward=brightness, pipe=pipe)
    assert pipe.vae.dtype == torch.float32
    assert result.metrics[0]["grad_norm"] > 0


def test_on_the_command_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--model", str(folder / "sdxl"), "--reward", "jpeg", "--prompts", "animals"]
    assert main([*train, "--dry-run", "--memory", "12gb"]) == 0
    printed = capsys.readouterr().out
    assert "usable of 12gb" in printed
    assert "bfloat16" in printed  # planned for a card, wherever this runs
    assert not list(tmp_path.iterdir())
    assert main([*train, "--memory", "6gb"]) == 2
    assert "12gb" in capsys.readouterr().err
    assert main([*train, "--quantize", "4bit", "--device", "cpu"]) == 2
    assert "quantize is '4bit', which needs a CUDA device" in capsys.readouterr().err
