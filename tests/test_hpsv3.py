"""`hpsv3`: against the authors' own class, positions, view, text."""

import hashlib
import json

import pytest
import torch
from formula import numbers, pictures, weights
from safetensors.torch import save_file
from tiny_qwen import save_qwen
from tiny_rewards import golden, installed_weights

from align.rewards import load_reward
from align.rewards.hpsv3 import VIEW, HpsV3, load_hpsv3

installed = installed_weights


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The model of `scripts/golden/hpsv3.py`; its words are numbers, the tokenizer is not used."""
    folder, stored = tmp_path_factory.mktemp("hpsv3"), golden("hpsv3")
    save_qwen(folder, "qwen2_vl")
    config = {"model_type": "qwen2_vl"} | stored["config"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(stored["shapes"]), folder / "HPSv3.safetensors")
    return load_hpsv3(folder / "HPSv3.safetensors", folder, torch.float32)


def question(stored, index):
    down, across = stored["patches"][index]
    patches = numbers("patches", (down * across, 1176)).float()
    return (
        torch.tensor([stored["questions"][index]]),
        patches,
        torch.tensor([[1, down, across]]),
    )


@pytest.mark.parametrize("index", [0, 1])
def test_both_numbers_are_the_authors(reference, index):
    stored = golden("hpsv3")
    with torch.no_grad():
        ours = reference.rate(*question(stored, index))[0]
    torch.testing.assert_close(ours, torch.tensor(stored["scores"][index]), rtol=1e-4, atol=1e-5)


def test_positions_of_pictures_give_another_score(reference):
    """What a port computes that leaves positions to transformers."""
    stored = golden("hpsv3")
    ids, patches, grid = question(stored, 1)
    with torch.no_grad():
        reference.model.rope_deltas = None
        states = reference.model(
            input_ids=ids, pixel_values=patches, image_grid_thw=grid, use_cache=False,
            mm_token_type_ids=(ids == reference.image).int(),
        ).last_hidden_state  # fmt: skip
        other = reference.head(states[ids == ids.max()])[0, 0]
    assert abs(other.item() - stored["scores"][1][0]) > 1e-2


def test_sizes_are_those_of_the_authors():
    assert VIEW.size(512, 512) == VIEW.size(1024, 1024) == (448, 448)
    assert VIEW.size(768, 768) == (420, 420)  # 15.999... tokens are 15
    assert VIEW.size(768, 1024) == (364, 504)


def test_the_instruction_is_the_authors(reference):
    digest = hashlib.sha256(reference.instruction.encode()).hexdigest()
    assert digest == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"


@pytest.fixture(scope="module")
def short(installed):
    """The reward with a shorter instruction, as the tiny tokenizer has a token for each letter."""
    reward = load_reward("hpsv3")
    inner = reward.functions["hpsv3"]
    assert isinstance(inner, HpsV3)
    inner.instruction = "{text_prompt}: <|Reward|> END"
    return reward


def test_the_score_is_read_at_the_heads_token(short):
    inner = short.functions["hpsv3"]
    ids = inner.tokens("a dog", 256)[0].tolist()
    assert ids.count(inner.image) == 256
    last = inner.model.get_input_embeddings().num_embeddings - 1
    assert ids.count(last) == 1
    assert inner.tokenizer.decode(ids[ids.index(last) + 1 :]).startswith(" END<|im_end|>")
    told = inner.tokenizer.decode(ids[: ids.index(last)])
    assert told.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_st")
    assert told.endswith("<|vision_end|>a dog: ")


def test_gradient_ascent_and_batches(short):
    images, prompts = pictures(2, 40, 48), ["a dog", "two red cats"]
    with torch.no_grad():
        before = short(images, prompts)
        single = [short(images[i : i + 1], prompts[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(before, torch.cat(single), rtol=1e-5, atol=1e-5)
    for _ in range(4):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(short(images, prompts).sum(), images)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        images = (images + 0.004 * gradient / size).clamp(0, 1)
    with torch.no_grad():
        assert (short(images, prompts) > before).all()


def test_bad_input(short, tmp_path, installed):
    for mark in ("<|Reward|>", "<|im_end|>"):
        with pytest.raises(ValueError, match="may not stand in a"):
            short(pictures(1, 40, 48), [f"a dog{mark}"])
    save_file({"model.embed_tokens.weight": torch.zeros(3, 2)}, tmp_path / "HPSv3.safetensors")
    with pytest.raises(ValueError, match=r"is not HPSv3: it needs .* rm_head\.0\.weight"):
        load_reward(f"hpsv3:{tmp_path}")
