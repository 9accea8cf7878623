"""Parity with the published implementation on random weights, from stored golden tensors."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from align.nar import generate_ids, load_reference
from align.nar.generate import Decoder
from align.nar.layers import mask_padding
from tests.nar.weights import fill

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = {
    "c2i": {"task": "class", "num_heads": 4, "grid_shape": (4, 4)},
    "t2i": {"task": "text", "num_heads": 4, "grid_shape": (4, 4), "num_condition_tokens": 6},
    "video": {"task": "video", "num_heads": 4, "grid_shape": (2, 3, 4)},
}


def golden(name):
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["shapes"])


@pytest.fixture(params=SETTINGS)
def case(request):
    tensors, shapes = golden(request.param)
    return tensors, load_reference(fill(shapes), **SETTINGS[request.param])


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_mask_equals_the_reference(case):
    tensors, model = case
    tables, first = model.tables(torch.device("cpu")), model.num_condition_tokens
    theirs = tensors["mask"]
    if theirs.ndim == 3:
        ours = mask_padding(tables["mask"], tensors["condition_mask"])[:, 0]
    else:
        ours = tables["mask"]
    index = torch.cat([torch.arange(first), first + tables["raster"]])[:-1]  # last is never read
    assert torch.equal(ours, theirs[..., index, :][..., index])


def test_rotary_table_equals_the_reference(case):
    tensors, model = case
    if "rope" not in tensors:
        assert model.config.position == "learned"
        return
    tables, first = model.tables(torch.device("cpu")), model.num_condition_tokens
    assert (tensors["rope"][:first] == 0).all()
    index = torch.cat([torch.arange(first), first + tables["raster"]])
    assert_close(tables["rope"], tensors["rope"][index])


def test_teacher_forced_logits_and_loss_equal_the_reference(case):
    tensors, model = case
    mask = tensors.get("condition_mask")
    with torch.no_grad():
        logits = model.teacher_forced_logits(tensors["ids"], tensors["condition"], mask)
        log_probs = model.log_probs(tensors["ids"], tensors["condition"], mask)
    assert_close(logits, tensors["logits"])
    assert_close(-log_probs.mean(), tensors["loss"])
    assert_close(F.cross_entropy(logits.flatten(0, 1), tensors["ids"].flatten()), tensors["loss"])


def test_cached_logits_of_every_pass_equal_the_reference(case):
    tensors, model = case
    condition, mask = tensors["condition"], tensors.get("condition_mask")
    null, null_mask = model.null(condition, mask)
    decoder = Decoder(model, len(condition), with_null=True)
    ids = tensors["greedy"][:, model.order.raster]
    rows_mask = torch.cat([mask, null_mask]) if mask is not None else None
    with torch.no_grad():
        steps = [decoder.read_condition(torch.cat([condition, null]), rows_mask)]
        for start, end in zip(model.order.starts[:-2], model.order.starts[1:-1], strict=True):
            steps.append(decoder.advance(ids[:, start:end]))
    assert_close(torch.cat(steps, 1), tensors["steps"])


@pytest.mark.parametrize(("key", "tokens"), [("greedy", -1), ("greedy_interval", 6)])
def test_greedy_ids_with_guidance_equal_the_reference(case, key, tokens):
    tensors, model = case
    ids = generate_ids(
        model,
        tensors["condition"],
        condition_mask=tensors.get("condition_mask"),
        guidance_scale=2.5,
        guidance_tokens=tokens,
        greedy=True,
    )
    assert torch.equal(ids, tensors[key])


def test_published_model_survives_our_own_format(case, tmp_path):
    tensors, model = case
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    mask = tensors.get("condition_mask")
    with torch.no_grad():
        logits = again.teacher_forced_logits(tensors["ids"], tensors["condition"], mask)
    assert_close(logits, tensors["logits"])


def test_checkpoint_files_and_trainers_wrappings_load(tmp_path):
    tensors, shapes = golden("c2i")
    weights = fill(shapes)
    torch.save({"model": weights | {"layers.0.attention.kv_cache.k_cache": torch.zeros(1)}},
               tmp_path / "ddp.pt")  # fmt: skip
    save_file(weights, tmp_path / "bare.safetensors")
    for name in ("ddp.pt", "bare.safetensors"):
        model = load_reference(tmp_path / name, **SETTINGS["c2i"])
        with torch.no_grad():
            assert_close(model(tensors["ids"], tensors["condition"]), tensors["logits"])


@pytest.mark.usefixtures("unchecked")
def test_a_checkpoint_that_does_not_fit_names_its_first_keys(tmp_path):
    _, shapes = golden("c2i")
    weights = fill(shapes)
    raster = {k: v for k, v in weights.items() if not k.startswith("medusa_")}
    with pytest.raises(ValueError, match=r"missing medusa_norm\.weight, medusa_output\.weight"):
        load_reference(raster, **SETTINGS["c2i"])
    with pytest.raises(ValueError, match="unexpected surprise"):
        load_reference(weights | {"surprise": torch.zeros(1)}, **SETTINGS["c2i"])
    narrow = weights | {"layers.1.attention.wo.weight": torch.zeros(64, 32)}
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wo\.weight is \[64, 32\]"):
        load_reference(narrow, **SETTINGS["c2i"])
    with pytest.raises(ValueError, match="task 'image'"):
        load_reference(weights, task="image", num_heads=4, grid_shape=(4, 4))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_reference(tmp_path / "absent.pt", **SETTINGS["c2i"])
    torch.save({"model": Path("x")}, tmp_path / "objects.pt")
    with pytest.raises(ValueError, match="convert it to safetensors"):
        load_reference(tmp_path / "objects.pt", **SETTINGS["c2i"])
    _, video = golden("video")
    with pytest.raises(ValueError, match=r"abs_pe is \[25, 64\], expected \[33, 64\]"):
        load_reference(fill(video), task="video", num_heads=4, grid_shape=(2, 4, 4))
