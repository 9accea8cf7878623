"""Whole training runs on a tiny pipeline: what they write, learn, log and refuse."""

import json
import math
import textwrap

import pytest
import torch
from PIL import Image
from tiny import build
from train_helpers import LORA, PROMPTS, run, small_config, weights

from align.alignprop import embeddings
from align.alignprop.embeddings import Embeddings
from align.diffusion.sample import generate
from align.models.lora import add_lora


def test_a_run_leaves_what_the_interface_names(tmp_path):
    result, pipe = run(
        tmp_path, tracker="tensorboard", learning_rate=0.1, sample_every=1, checkpoint_every=1
    )
    out = tmp_path / "run"
    assert result.out == out
    assert result.steps == 2
    assert result.lora == out / "lora" / LORA
    images = sorted(path.name for path in (out / "images").iterdir())
    assert images == ["after.png", "before.png", "step-00001.png", "step-00002.png"]
    assert "noise_seeds" in json.loads(Image.open(out / "images" / "after.png").text["settings"])
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((out / "run.json").read_text())["config"]["lora_rank"] == 2
    assert [record["step"] for record in result.metrics] == [1, 2]
    for record in result.metrics:
        assert {"reward", "reward_std", "terms", "grad_norm", "lr", "window", "seconds"} <= {
            *record
        }
        assert record["window"] == "last 3 of 3"
        assert record["grad_norm"] > 0
    card = (out / "lora" / "README.md").read_text()
    assert "# A LoRA that raises" in card
    assert "![after](after.png)" in card
    assert (out / "lora" / "after.png").read_bytes() == (out / "images" / "after.png").read_bytes()
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"]["after"] != report["pictures"]["before"]

    trained = generate(pipe, PROMPTS[:2], seed=0, num_inference_steps=2)
    plain = build("sd")
    base = generate(plain, PROMPTS[:2], seed=0, num_inference_steps=2)
    plain.load_lora_weights(out / "lora")
    loaded = generate(plain, PROMPTS[:2], seed=0, num_inference_steps=2)
    torch.testing.assert_close(loaded, trained, atol=1e-5, rtol=0)
    assert (loaded - base).abs().max() > 1e-3


def test_the_reward_rises(tmp_path):
    result, _ = run(tmp_path, steps=6, batch_size=5, learning_rate=0.03)
    report = json.loads((result.out / "report.json").read_text())["pictures"]
    assert report["after"]["brightness"] > report["before"]["brightness"] + 0.3


@pytest.mark.parametrize(
    ("window", "max_step_grad_norm"), [("random-per-sample", 0), ("draft-lv:2", 0), ("all", 1e-3)]
)
def test_splitting_a_batch_changes_nothing(tmp_path, window, max_step_grad_norm):
    settings = {"grad_window": window, "eta": 0.5, "dtype": torch.float64, "kl_weight": 10.0}
    settings |= {"normalize_rewards": True, "learning_rate": 0.01}
    settings |= {"max_step_grad_norm": max_step_grad_norm}
    whole, pipe = run(tmp_path / "a", **settings)
    split, other = run(tmp_path / "b", micro_batch_size=1, **settings)
    torch.testing.assert_close(weights(other), weights(pipe), rtol=1e-7, atol=1e-12)
    for one, two in zip(whole.metrics, split.metrics, strict=True):
        assert one["reward"] == pytest.approx(two["reward"], rel=1e-9)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-6)
        assert one["kl"] == pytest.approx(two["kl"], rel=1e-6)


def test_only_the_lora_changes(tmp_path):
    before = {name: value.clone() for name, value in build("sd").unet.state_dict().items()}
    _, pipe = run(tmp_path, learning_rate=0.1)
    after = {name.replace(".base_layer", ""): v for name, v in pipe.unet.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert weights(pipe).abs().sum() > 0


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, *((1 + math.cos(math.pi * n / 4)) / 2 for n in range(4))]),
    ],
)
def test_schedule_and_warmup(tmp_path, schedule, shares):
    settings = {"lr_schedule": schedule, "warmup_steps": 2, "learning_rate": 1e-3}
    result, _ = run(tmp_path, steps=6, num_inference_steps=1, batch_size=1, **settings)
    rates = [record["lr"] for record in result.metrics]
    assert rates == pytest.approx([1e-3 * share for share in shares], abs=1e-12)


def test_moving_average(tmp_path):
    """diffusers' average takes the first weights as they are and lets the decay grow as
    (1 + n) / (10 + n), so that 0.2 acts from the third update on."""
    after, decays = [], [0, 2 / 11, 0.2, 0.2, 0.2]
    pipe = build("sd")
    result, _ = run(
        tmp_path,
        pipe=pipe,
        steps=len(decays),
        num_inference_steps=1,
        ema_decay=0.2,
        learning_rate=0.1,
        on_step=lambda record: after.append(weights(pipe)),
    )
    average = torch.zeros_like(after[0])
    for decay, reached in zip(decays, after, strict=True):
        average = decay * average + (1 - decay) * reached
    assert (average - after[-1]).abs().max() > 1e-2
    for name, expected in (("lora-ema", average), ("lora", after[-1])):
        saved = build("sd")
        add_lora(saved, rank=2, start=str(result.out / name))
        torch.testing.assert_close(weights(saved), expected, rtol=0, atol=1e-6)


def test_several_rewards_with_metadata(tmp_path):
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        textwrap.dedent(
            """
            def red(images, prompts, metadata):
                assert [row["name"] for row in metadata] == prompts
                return images[:, 0].mean((1, 2)), {"info": "TRL's form"}

            def blue(images, prompts):
                return 1000 * images[:, 2].mean((1, 2))
            """
        )
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": p, "name": p}) for p in PROMPTS))
    expression = f"{rewards}:red=2,{rewards}:blue=0.5"
    result, _ = run(
        tmp_path,
        reward=expression,
        prompts=str(prompts),
        term_gradients=True,
        normalize_rewards=True,
    )
    red, blue = f"{rewards}:red", f"{rewards}:blue"
    for record in result.metrics:
        assert set(record["terms"]) == {red, blue}
        total = 2 * record["terms"][red] + 0.5 * record["terms"][blue]
        assert record["reward"] == pytest.approx(total, rel=1e-5)
        norms = record["term_grad_norms"]
        assert norms[blue] == pytest.approx(1000 * norms[red], rel=1e-3)


def test_embeddings_are_cached_and_do_not_depend_on_neighbors(tmp_path):
    pipe, calls = build("sd"), []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    embed = Embeddings(small_config(tmp_path), pipe, torch.device("cpu"))
    first = embed(["a", "bc"])
    count = len(calls)
    again = embed(["bc", "a"])
    assert len(calls) == count
    for name, rows in first.items():
        assert torch.equal(rows, again[name].flip(0))
    assert not embed.made["a"].keys() & embed.negative.keys()  # kept once for all prompts


def test_embeddings_take_no_more_memory_than_they_may(tmp_path, monkeypatch):
    embed = Embeddings(small_config(tmp_path), build("sd"), torch.device("cpu"))
    embed(["a"])
    monkeypatch.setattr(embeddings, "REMEMBERED", 2 * embed.bytes)
    embed(["b", "c", "d"])
    assert list(embed.made) == ["c", "d"]
    assert embed.bytes == embeddings.REMEMBERED


def test_starting_from_a_lora(tmp_path):
    first, pipe = run(tmp_path / "a", learning_rate=0.1)
    second, again = run(tmp_path / "b", learning_rate=1e-12, lora=(str(first.lora.parent),))
    same = {"prompts": PROMPTS[:1], "seed": 0, "num_inference_steps": 2}
    torch.testing.assert_close(generate(again, **same), generate(pipe, **same), atol=1e-5, rtol=0)
    assert second.metrics[0]["reward"] != first.metrics[0]["reward"]


def test_time_limit_and_a_callers_stop(tmp_path):
    result, _ = run(tmp_path / "a", steps=5, max_minutes=1e-6)
    assert result.steps == 1
    assert result.lora.is_file()
    seen = []
    result, _ = run(
        tmp_path / "b", steps=5, on_step=lambda record: seen.append(record) or len(seen) == 2
    )
    assert result.steps == 2
    assert [record["step"] for record in seen] == [1, 2]
