"""Image tokenizers: codes, round trips, learning, and LlamaGen's weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from align.nar import ImageTokenizer, load_llamagen_tokenizer
from align.nar.llamagen import LlamaGenTokenizer
from tests.nar.weights import fill

GOLDEN = Path(__file__).parent / "golden/vq16.safetensors"


def tiny(**config):
    torch.manual_seed(0)
    settings = {"image_size": (8, 12), "widths": (8, 16, 16), "blocks": 1}
    return ImageTokenizer(**(settings | config)).eval()


QUANTIZERS = [
    {"quantizer": "fsq", "levels": (5, 3)},
    {"quantizer": "vq", "codebook_size": 20, "code_width": 4},
]


@pytest.mark.parametrize("config", QUANTIZERS, ids=lambda config: config["quantizer"])
def test_decoding_the_codes_of_a_picture_is_its_reconstruction(config, tmp_path):
    tokenizer = tiny(**config)
    images = torch.rand(3, 3, 8, 12)
    ids = tokenizer.encode(images)
    assert ids.shape == (3, 6)
    assert tokenizer.grid_shape == (2, 3)
    assert int(ids.max()) < tokenizer.codebook_size
    with torch.no_grad():
        rebuilt, _ = tokenizer(images)
        decoded = tokenizer.decode(ids)
    torch.testing.assert_close(decoded, rebuilt.clamp(0, 1), atol=1e-5, rtol=0)
    tokenizer.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path).eval()
    assert torch.equal(again.encode(images), ids)
    torch.testing.assert_close(again.decode(ids), decoded)


@pytest.mark.parametrize("config", QUANTIZERS, ids=lambda config: config["quantizer"])
def test_training_lowers_the_error(config):
    tokenizer = tiny(**config).train()
    images = torch.rand(4, 3, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 5e-3)
    errors = []
    for _ in range(60):
        rebuilt, extra = tokenizer(images)
        error = (rebuilt - images).square().mean()
        optimizer.zero_grad()
        (error + extra).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.3 * errors[0]


def test_codes_of_distant_patches_do_not_matter():
    tokenizer = tiny(image_size=(16, 16), levels=(8, 8))
    images = torch.rand(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :, :, 8:] = torch.rand(1, 3, 16, 8)
    before = tokenizer.encode(images).view(4, 4)
    after = tokenizer.encode(changed).view(4, 4)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 2:], after[:, 2:])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must be multiples of 4 pixels"):
        tiny(image_size=(9, 12))
    with pytest.raises(ValueError, match="quantizer 'lfq'"):
        tiny(quantizer="lfq")
    with pytest.raises(ValueError, match=r"takes pictures \[batch, 3, 8, 12\]"):
        tiny().encode(torch.rand(1, 3, 12, 8))
    with pytest.raises(ValueError, match="5 tokens do not fill the grid"):
        tiny().decode(torch.zeros(1, 5, dtype=torch.long))


def golden():
    with safe_open(GOLDEN, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, fill(json.loads(file.metadata()["shapes"]))


def golden_weights():
    # the reference normalizes its codebook on loading a picture; raw weights are stored
    return golden()[1] | {"quantize.codebook_used": torch.zeros(4)}


def test_llamagen_tokenizer_equals_the_reference(tmp_path):
    tensors, _ = golden()
    model = load_llamagen_tokenizer({"model": golden_weights()}, image_size=(32, 48))
    assert model.grid_shape == (2, 3)
    assert torch.equal(model.encode(tensors["image"] / 255), tensors["ids"])
    with torch.no_grad():
        decoded = model.decode(tensors["codes"])
    expected = ((tensors["decoded"] + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    again = LlamaGenTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(tensors["image"] / 255), tensors["ids"])


def test_llamagen_checkpoints_that_do_not_fit_are_refused():
    weights = golden_weights()
    missing = {k: v for k, v in weights.items() if k != "decoder.conv_in.bias"}
    with pytest.raises(ValueError, match=r"missing decoder\.conv_in\.bias"):
        load_llamagen_tokenizer(missing)
    with pytest.raises(ValueError, match="unexpected surprise"):
        load_llamagen_tokenizer(weights | {"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match="multiples of 16 pixels"):
        load_llamagen_tokenizer(weights, image_size=(40, 40))
