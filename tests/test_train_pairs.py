"""`align train --pairs`: preferences and plain denoising on pictures of one's own."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import build
from train_helpers import run, small_config, weights

from align.alignprop.pairs import bucket_size, encode_pairs
from align.alignprop.train import train
from align.diffusion.pixels import decode, encode, unscale
from align.language.pairs import read_pairs

PAIRS = {"method": "dpo", "batch_size": 4, "pair_timesteps": 2, "num_inference_steps": 3}


def write_pairs(folder, count=8, sizes=((16, 16),)):
    """Bright pictures are chosen, dark ones rejected."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, rows = torch.Generator().manual_seed(0), []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        for side, level in (("chosen", 200), ("rejected", 40)):
            noise = torch.randint(-30, 30, (height, width, 3), generator=generator)
            pixels = (noise + level).clamp(0, 255).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{side}-{number}.png")
        rows.append(
            {
                "prompt": "ab"[number % 2],
                "chosen": f"chosen-{number}.png",
                "rejected": f"rejected-{number}.png",
            }
        )
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.parametrize("name", ["sd", "sd-v", "sd3", "flux-dev"])
def test_encode_undoes_the_scaling(name):
    pipe, images = build(name), torch.rand(2, 3, 16, 16)
    latents = encode(pipe, images)
    own = pipe.vae.encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(unscale(pipe.vae.config, latents), own, atol=1e-5, rtol=1e-5)
    assert decode(pipe, latents).shape == images.shape


def test_sizes_of_buckets():
    assert bucket_size((100, 100), (512, 512), 8) == (512, 512)
    assert bucket_size((300, 500), (512, 512), 8) == (384, 640)
    tall = bucket_size((600, 300), (512, 512), 8)
    assert tall[0] > tall[1]
    for height, width in (tall, bucket_size((10, 1000), (512, 512), 8)):
        assert height * width <= 512 * 512
        assert height % 64 == width % 64 == 0


def test_pictures_are_sorted_by_shape_and_encoded_once(tmp_path):
    file = write_pairs(tmp_path, sizes=((16, 16), (40, 20), (32, 32)))
    buckets = encode_pairs(read_pairs(file), build("sd"), None, None)
    assert sorted(len(bucket.rows) for bucket in buckets) == [3, 5]
    for bucket in buckets:
        assert bucket.chosen.shape == bucket.rejected.shape
        assert not bucket.chosen.requires_grad
    (only,) = encode_pairs(read_pairs(file), build("sd"), 16, 16)
    assert only.rows == list(range(8))


def embedded(folder, **changes):
    """A run on a model that denoises, and its records."""
    torch.set_num_threads(1)
    pairs = write_pairs(folder / "data", sizes=((32, 32),))
    size = {"height": 32, "width": 32, "num_inference_steps": 3, "model": "embedded/scenes"}
    few = {"batch_size": 8, "learning_rate": 2e-3, "lora_rank": 8, "prompts": None}
    return train(small_config(folder, pairs=pairs, **size, **few, **changes)).metrics


def test_pairs_are_learned(tmp_path):
    metrics = embedded(tmp_path, method="dpo", steps=4, beta=300.0)
    assert metrics[0]["loss"] == pytest.approx(math.log(2))  # the LoRA begins at 0
    assert metrics[0]["pairs_right"] == 0
    assert metrics[-1]["pairs_right"] == 1
    assert metrics[-1]["loss"] < 0.2


def test_the_chosen_ones_alone(tmp_path):
    """Pictures of noise, which the model has never seen, are learned."""
    metrics = embedded(tmp_path, method="sft", steps=8)
    losses = [record["loss"] for record in metrics]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert "reward" not in metrics[0]
    assert "kl" not in metrics[0]


@pytest.mark.parametrize("name", ["sdxl", "flux-dev"])
def test_a_model_that_reads_the_size_is_told_that_of_the_bucket(tmp_path, name):
    """Wide pictures alone; the model's own size is square."""
    pairs = write_pairs(tmp_path / "data", count=4, sizes=((40, 20),))
    pipe, seen = build(name), []
    module = pipe.transformer if name == "flux-dev" else pipe.unet
    forward = module.forward

    def spied(*args, **settings):
        if name == "flux-dev":  # rows and columns of 2x2 patches
            seen.append(tuple(int(n) + 1 for n in settings["img_ids"].amax(0)[1:]))
        else:  # height and width in pixels
            seen.append(tuple(settings["added_cond_kwargs"]["time_ids"][0, :2].tolist()))
        return forward(*args, **settings)

    module.forward = spied
    settings = PAIRS | {"steps": 1, "sample_every": 0}
    (bucket,) = encode_pairs(read_pairs(pairs), pipe, None, None)
    high, wide = bucket.chosen.shape[-2:]
    assert wide > high
    run(tmp_path, pipe=pipe, pairs=pairs, prompts=None, **settings)
    side = pipe.vae_scale_factor if name == "sdxl" else 0.5
    assert (high * side, wide * side) in seen


def test_the_split_and_a_resume_change_nothing(tmp_path):
    pairs = write_pairs(tmp_path / "data", sizes=((16, 16), (40, 20)))
    settings = PAIRS | {"steps": 3, "checkpoint_every": 1, "learning_rate": 0.01}
    settings |= {"pairs": pairs, "prompts": None}
    whole = run(tmp_path / "whole", dtype=torch.float64, **settings)[1]
    split = run(tmp_path / "split", dtype=torch.float64, micro_batch_size=2, **settings)[1]
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-9, rtol=0)
    run(tmp_path / "stopped", on_step=lambda r: r["step"] == 2, **settings)
    resumed = settings | {"out": None, "resume": str(tmp_path / "stopped" / "run")}
    again = run(tmp_path / "stopped", **resumed)[1]
    once = run(tmp_path / "once", **settings)[1]
    assert torch.equal(weights(again), weights(once))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "sft"}, "method is 'sft', which needs pictures: give --pairs"),
        ({"pairs": "p.csv"}, "alignprop learns from images of its own, dpo and sft from pairs"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, **changes)


def test_prompts_of_the_final_measurement_are_refused(tmp_path):
    from align.scenes import prompt_set

    file = write_pairs(tmp_path / "data", count=2)
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    rows[0]["prompt"] = prompt_set("scenes-heldout-b")[0]
    Path(file).write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="scenes-heldout-b is kept for the final measurement"):
        run(tmp_path, pairs=file, prompts=None, **PAIRS)
    assert not (tmp_path / "run").exists()
