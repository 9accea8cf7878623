"""One update: steps that a gradient scaler passes over, generators, references, scales."""

import math
import random
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tiny import build
from train_helpers import (
    brightness,
    randomize,
    run,
    small_config,
    small_session,
    updates_of,
    weights,
)

from align.alignprop.preferences import preference_loss
from align.alignprop.session import open_session
from align.alignprop.update import batch_loss
from align.config.train import METHODS
from align.models.lora import add_lora, load_lora, save_lora
from align.rewards import load_reward
from align.training.optimizer import SKIPS
from align.training.scales import RunningScale
from align.training.stopping import Diverged
from tests.nar.fit_helpers import nan_gradient

DPO = {"method": "dpo", "group_size": 4, "batch_size": 8, "pair_timesteps": 2}


def loss_of(session):
    """The loss function of the session's method."""
    return resolve_name(METHODS[session.config.method].loss)


def scaled_session(folder, reward, **changes):
    """A session with the gradient scaler that float16 gets on CUDA, on the CPU."""
    session = small_session(folder, torch.float32, reward=reward, **changes)
    scaler = torch.amp.GradScaler("cpu")
    accelerator, plain = session.accelerator, session.optimizer.optimizer
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler, accelerator._optimizers = scaler, []
    session.optimizer = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
    accelerator._optimizers.append(session.optimizer)
    return session


def test_a_gradient_that_is_never_a_number_ends_a_run_with_a_scaler(tmp_path):
    session = scaled_session(
        tmp_path, lambda x, p: nan_gradient(brightness(x, p)), num_inference_steps=1,
        lr_schedule="linear", steps=100, ema_decay=0.5,
    )  # fmt: skip
    before, rates = weights(session.pipe), set()
    with pytest.raises(Diverged, match=rf"norm is nan, at every scale of {SKIPS} updates in a row"):
        updates_of(session, lambda record: rates.add(record["lr"]))
    assert session.done == SKIPS - 1
    assert rates == {session.config.learning_rate}  # the schedule has not gone on
    assert session.ema.optimization_step == 0
    assert torch.equal(weights(session.pipe), before)


def test_a_skipped_step_is_no_step(tmp_path):
    calls = []

    def reward(images, prompts):
        calls.append(len(calls))
        scores = brightness(images, prompts)
        return nan_gradient(scores) if calls[-1] == 1 else scores

    settings = {"num_inference_steps": 1, "lr_schedule": "linear", "steps": 3, "ema_decay": 0.5}
    session, seen = scaled_session(tmp_path, reward, **settings), []
    records = updates_of(session, lambda record: seen.append(weights(session.pipe)))
    rates = [record["lr"] / session.config.learning_rate for record in records]
    assert rates == pytest.approx([1.0, 2 / 3, 2 / 3])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert math.isnan(records[1]["grad_norm"])
    assert session.ema.optimization_step == 2


@pytest.mark.usefixtures("unchecked")
def test_the_callers_generators_go_on_as_if_nothing_had_been(tmp_path):
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def noisy(images, prompts):
        return brightness(images + 0.01 * torch.randn(images.shape), prompts)

    def seed():
        random.seed(1), np.random.seed(2), torch.manual_seed(3)

    seed()
    expected = draws()
    pipe, other = build("sd"), build("sd")
    seed()
    config = small_config(tmp_path, steps=1)
    session = open_session(config, reward=noisy, pipe=pipe)
    first = updates_of(session)[0]["reward"]
    assert draws() == expected
    torch.manual_seed(99)  # and the update does not depend on them
    config = small_config(tmp_path, steps=1, overwrite=True)
    again = open_session(config, reward=noisy, pipe=other)
    assert updates_of(again)[0]["reward"] == first


def with_lora(folder):
    """A tiny pipeline and a LoRA of its own as a file."""
    pipe = build("sd").to(torch.float64)
    add_lora(pipe, rank=2)
    randomize(pipe)
    save_lora(pipe, folder / "start")
    return str(folder / "start")


@pytest.mark.parametrize(
    "changes", [{"kl_weight": 1.0}, DPO | {"kl_weight": 1.0}], ids=["kl", "dpo"]
)
def test_the_reference_keeps_the_lora_that_the_pipeline_had(tmp_path, changes):
    start = with_lora(tmp_path)
    pipe = build("sd").to(torch.float64)
    load_lora(pipe, start)
    session = open_session(small_config(tmp_path, **changes), reward=brightness, pipe=pipe)
    part = loss_of(session)(session, 0, range(session.config.batch_size))
    assert part.kl == 0
    if "method" in changes:
        assert part.loss.item() == pytest.approx(math.log(2), abs=1e-12)
    randomize(pipe)
    assert loss_of(session)(session, 0, range(session.config.batch_size)).kl > 0


def test_the_reference_of_a_lora_that_is_trained_further_is_the_model_without_it(tmp_path):
    start = with_lora(tmp_path)
    (tmp_path / "hand").mkdir()
    config = small_config(tmp_path, lora=(start,), kl_weight=1.0)
    further = open_session(config, reward=brightness, pipe=build("sd").to(torch.float64))
    config = small_config(tmp_path / "hand", kl_weight=1.0)
    plain = open_session(config, reward=brightness, pipe=build("sd").to(torch.float64))
    assert batch_loss(plain, 0, range(2)).kl == 0
    trained = dict(plain.pipe.unet.named_parameters())
    for name, parameter in further.pipe.unet.named_parameters():
        if ".align." in name:  # the same weights, on a model whose reference is plainly its base
            trained[name].data.copy_(parameter.data)
    expected = batch_loss(plain, 0, range(2)).kl
    assert expected > 0
    torch.testing.assert_close(batch_loss(further, 0, range(2)).kl, expected)


def test_a_scale_that_the_model_is_given_is_the_same_for_images_and_pairs(tmp_path):
    pipe = build("lcm").to(torch.float64)
    seen = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep_cond"]), with_kwargs=True
    )
    session = open_session(
        small_config(tmp_path, guidance_scale=4.0, **DPO), reward=brightness, pipe=pipe
    )
    seen.clear()
    preference_loss(session, 0, range(8))
    width = pipe.unet.config.time_cond_proj_dim
    expected = pipe.get_guidance_scale_embedding(torch.tensor([3.0]), embedding_dim=width).double()
    assert len(seen) > session.config.num_inference_steps  # those of the pairs too
    for embedding in seen:
        torch.testing.assert_close(embedding, expected.expand_as(embedding))


def test_a_term_without_spread_has_no_scale_yet():
    scale = RunningScale()
    for constant in (0.0, 0.9, -3000.7):
        scale.moments.clear()
        scale.update({"absent": torch.full((7,), constant), "usual": torch.arange(7.0)})
        scaled = scale({"absent": torch.tensor([constant, constant - 5]), "usual": torch.ones(2)})
        torch.testing.assert_close(scaled["absent"], torch.tensor([0.0, -5.0]), atol=1e-3, rtol=0)
        torch.testing.assert_close(scaled["usual"], torch.full((2,), -1.0))  # deviation 2
    scale.moments.clear()
    small = 1000 + 0.01 * torch.tensor([-1.0, 1.0])  # small beside its mean, yet a spread
    scale.update({"small": small})
    expected = (small - small.double().mean()) / small.double().std(correction=0)
    torch.testing.assert_close(
        scale({"small": small})["small"].double(), expected.double(), rtol=1e-2, atol=0
    )


def one_score(images, prompts):
    return [0.0] * len(images)


one_score.differentiable = False


class FromUpdate:
    """A reward that tells images apart from its n-th batch of images on."""

    differentiable = False
    __name__ = "from_update"

    def __init__(self, count):
        self.left = count

    def __call__(self, images, prompts):
        if len(images) < 8:  # pictures of the run's report
            return [0.0] * len(images)
        self.left -= 1
        return [0.0] * len(images) if self.left > 0 else images.flatten(1).mean(1).tolist()


def test_ranked_images_of_equal_scores_are_passed_over_at_first_too(tmp_path, caplog):
    # Eight fixed pictures are scored before the first update.
    result, pipe = run(tmp_path, reward=FromUpdate(3), steps=3, **DPO)
    flat = [record["flat_groups"] for record in result.metrics]
    assert flat[0] == 1
    assert flat[-1] < 1
    assert weights(pipe).abs().max() > 0
    assert "the same score in update 1" in caplog.text


def test_scores_that_never_differ_are_refused_at_the_end(tmp_path):
    with pytest.raises(ValueError, match="in none of 2 updates did the reward tell two images"):
        run(tmp_path, reward=one_score, **DPO)
    again = {"out": None, "resume": str(tmp_path / "run"), "steps": 3}
    with pytest.raises(ValueError, match="in none of 3 updates"):
        run(tmp_path, reward=one_score, **DPO | again)


def in_place(images, prompts):
    images.sub_(0.5).div_(0.5)
    return images.mean((1, 2, 3))


def out_of_place(images, prompts):
    return ((images - 0.5) / 0.5).mean((1, 2, 3))


def two_terms(first):
    reward = load_reward("jpeg")
    mine = load_reward(first)
    reward.functions = {"mine": next(iter(mine.functions.values())), **reward.functions}
    return reward


def test_a_reward_that_writes_into_its_input_spoils_nothing(tmp_path):
    results = []
    for first in (in_place, out_of_place):
        reward = two_terms(first)
        session = small_session(tmp_path / first.__name__, reward=reward)
        part = batch_loss(session, 0, range(2))
        images = torch.full((1, 3, 16, 16), 0.25, requires_grad=True)
        terms = reward.terms(images, ["a"])
        (gradient,) = torch.autograd.grad(sum(terms.values()).sum(), images)
        assert images.eq(0.25).all()
        results.append([part.terms["mine"], part.terms["jpeg"], *terms.values(), gradient])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    rows = [{"x": 1}]

    def greedy(images, prompts, metadata):
        prompts.clear()
        return [float(row.pop("x")) for row in metadata]

    for _ in range(2):
        assert load_reward(greedy)(torch.rand(1, 3, 8, 8), ["a"], rows).tolist() == [1.0]
