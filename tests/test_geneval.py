"""`geneval`: mmdet's keys, what the detector finds, the rule, the soft score."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from formula import pictures
from geneval_scenes import COUNT, scene
from tiny_mask2former import mask2former, to_mmdet
from tiny_rewards import golden, installed_weights, loader

import align
from align.language.geneval import geneval_prompts, parse_geneval
from align.language.prompts import load_prompts
from align.rewards import load_reward
from align.rewards.geneval import GenEval, Group, threshold
from align.rewards.geneval_rule import grade, judge, judge_strictly
from align.rewards.identity import shared
from align.rewards.mask2former import (
    Mask2Former,
    Seen,
    Thing,
    box_of,
    convert,
    find_objects,
    load_mmdet,
    view_size,
)

# A tiny CLIP has a token for each letter.
pytestmark = pytest.mark.filterwarnings("ignore:.* reads 24 tokens")
installed = installed_weights
load = loader
DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}


# --- mmdet's checkpoint ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    return mask2former()


def test_mmdets_tensors_give_the_same_model(detector, tmp_path):
    path = tmp_path / "mmdet.pth"
    theirs = to_mmdet(detector)
    index = {"backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(81)}
    torch.save({"meta": {"epoch": 50}, "state_dict": theirs | index}, path)
    ours = load_mmdet(path)
    want = detector.state_dict()
    assert set(convert(theirs)) == {
        key for key in want if "swin.layernorm" not in key and key != "criterion.empty_weight"
    }
    for key, value in convert(theirs).items():
        assert torch.equal(value, want[key]), key
    with torch.no_grad():
        seen = [model(pixel_values=pictures(1, 64, 96)) for model in (ours, detector)]
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(seen[0][name], seen[1][name])


@pytest.mark.parametrize(
    "key",
    ["backbone.stages.1.blocks.0.attn.w_msa.qkv.weight", "backbone.norm3.bias",
     "panoptic_head.pixel_decoder.level_encoding.weight",
     "panoptic_head.pixel_decoder.encoder.layers.1.attentions.0.sampling_offsets.bias",
     "panoptic_head.transformer_decoder.layers.0.attentions.0.attn.in_proj_weight",
     "panoptic_head.transformer_decoder.layers.1.attentions.1.attn.in_proj_bias",
     "panoptic_head.transformer_decoder.post_norm.weight", "panoptic_head.mask_embed.4.weight"],
)  # fmt: skip
def test_names_of_the_original_are_known(detector, key):
    assert key in to_mmdet(detector)


def test_merging_reads_mmdets_order(detector):
    """mmdet unfolds 2x2 neighbours; transformers stacks them: the same numbers come out."""
    swin = detector.model.pixel_level_module.encoder.swin
    merge = swin.encoder.layers[0].downsample
    theirs = {k: v for k, v in to_mmdet(detector).items() if k.startswith("backbone.stages.0.down")}
    states = torch.randn(1, 8 * 6, 16)
    unfolded = F.unfold(states.view(1, 8, 6, 16).permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    weight, bias, reduce = (
        theirs[f"backbone.stages.0.downsample.{name}"]
        for name in ("norm.weight", "norm.bias", "reduction.weight")
    )
    mine = F.layer_norm(unfolded, (64,), weight, bias) @ reduce.T
    torch.testing.assert_close(mine, merge(states, (8, 6)))
    (name,) = [k for k in convert(theirs) if k.endswith("downsample.reduction.weight")]
    assert torch.equal(convert(theirs)[name], merge.reduction.weight)


def test_other_checkpoints_are_refused(detector, tmp_path):
    with pytest.raises(ValueError, match=r"backbone\.conv1\.weight is no key of mmdet's"):
        convert({"backbone.conv1.weight": torch.zeros(1)})
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is no Mask2Former of mmdet"):
        load_mmdet(tmp_path / "other.pth")
    short = to_mmdet(detector)
    del short["panoptic_head.cls_embed.bias"]
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"not a checkpoint of this model.*class_predictor.bias"):
        load_mmdet(tmp_path / "short.pth")


# --- what is found --------------------------------------------------------------------------------


def brute_force(seen: Seen, limit: float) -> dict[int, list[tuple]]:
    """mmdet's way: the 100 best pairs, a mask for each, then the threshold."""
    p = seen.logits.softmax(-1)[:, :-1]
    scores, pairs = p.flatten().topk(min(100, p.numel()))
    masks = seen.at_size(pairs // p.shape[1])
    found = {}
    for score, pair, mask in zip(scores, pairs, masks, strict=True):
        inside = mask > 0
        total = score * (mask.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        if total > limit:
            found.setdefault(int(pair % p.shape[1]), []).append((total.item(), box_of(inside)))
    return {k: sorted(v, reverse=True)[:16] for k, v in found.items()}


@pytest.mark.parametrize("limit", [0.0, 0.02, 0.3])
def test_pairs_below_the_threshold_need_no_mask(detector, limit):
    with torch.no_grad():
        seen = Mask2Former(detector)(pictures(1, 60, 90))
        found = find_objects(seen, limit)
    ours = {k: [(t.score, t.box) for t in v] for k, v in found.items()}
    theirs = brute_force(seen, limit)
    assert ours.keys() == theirs.keys()
    for name, things in ours.items():
        assert [box for _, box in things] == [box for _, box in theirs[name]]
        assert [s for s, _ in things] == pytest.approx([s for s, _ in theirs[name]], rel=1e-5)
    assert bool(ours) == (limit < 0.3)


def test_sizes_boxes_and_padding(detector):
    assert view_size(1024, 1024) == (800, 800)
    assert view_size(512, 1024) == (667, 1333)
    mask = torch.zeros(8, 9, dtype=torch.bool)
    assert box_of(mask) == (0, 0, 0, 0)
    mask[2:4, 5] = True
    assert box_of(mask) == (5, 2, 6, 4)
    with torch.no_grad():
        seen = Mask2Former(detector)(pictures(1, 100, 250))
    assert (seen.inner, seen.padded) == ((533, 1333), (544, 1344))
    assert seen.at_size(torch.tensor([1, 2])).shape == (2, 100, 250)


# --- the rule -------------------------------------------------------------------------------------


def things(found):
    return {
        name: [Thing(box[4], tuple(box[:4])) for box, _ in rows] for name, rows in found.items()
    }


def test_decisions_reasons_and_grades_are_the_originals():
    """500 random scenes; `scripts/golden/geneval.py` asked the original's own functions."""
    verdicts = set()
    for seed, (reasons, strict, reward) in enumerate(golden("geneval")):
        found, asked = scene(seed)
        objects = things(found)
        named = {
            id(t): color for name, ts in objects.items()
            for t, (_, color) in zip(ts, found[name], strict=True)
        }  # fmt: skip

        def colours(taken, name, named=named):
            return [named[id(thing)] for thing in taken]

        ours = judge(objects, asked, colours)
        assert ["number" if fault == "few" else fault for fault in ours] == reasons, seed
        assert bool(judge_strictly(objects, asked, colours)) != strict, seed
        assert grade(objects, asked, colours) == pytest.approx(reward, abs=1e-9), seed
        verdicts |= {*ours, str(strict)}
    assert seed == COUNT - 1
    assert verdicts == {"few", "color", "target", "position", "many", "True", "False"}


def test_the_prompts_say_what_they_ask_for():
    rows = geneval_prompts()
    assert len(rows) == 553
    for row in rows:
        prompt = row.pop("prompt")
        assert parse_geneval(prompt) == row, prompt
    assert parse_geneval("dog") == DOG
    prompts = load_prompts("geneval")
    assert prompts.metadata[0]["tag"] == "single_object"
    for wrong in ("a photo of a dragon", "two dogs and a cat", "a photo of five dogs"):
        with pytest.raises(ValueError, match="is no prompt of GenEval; allowed are"):
            parse_geneval(wrong)
    assert (
        "Permission is hereby granted"
        in (Path(align.__file__).parent / "language/geneval.json").read_text()
    )


# --- rewards and judges ---------------------------------------------------------------------------


def tower(load):
    return load("clip").functions["clip"].tower


def painted(detector, load, mode, boxes, size=(60, 90)):
    """A GenEval whose detector reports these boxes: (class, p, (x0, y0, x1, y1))."""
    reward = GenEval(Mask2Former(detector), tower(load), mode)
    logits = torch.full((max(7, len(boxes)), 81), -8.0)
    logits[:, -1] = 0
    masks = torch.full((len(logits), *size), -30.0)
    for row, (name, p, (x0, y0, x1, y1)) in enumerate(boxes):
        logits[row, reward.classes.index(name)] = torch.tensor(p).logit()
        masks[row, y0:y1, x0:x1] = 30
    seen = Seen(logits, masks, size, size, size)
    reward.detector.forward = lambda *args, **settings: seen
    return reward


def position(relation):
    return {"tag": "position", "include": [
        {"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": [relation, 0]}
    ]}  # fmt: skip


def test_as_temperatures_shrink_signs_are_the_rules(detector, load):
    """Every entry of the soft score is above log(1/2) where the rule holds, else below."""
    generator = torch.Generator().manual_seed(0)
    held = {True: 0, False: 0}
    for _ in range(60):
        boxes = []
        for name in ("dog", "cat", "dog", "cat"):
            x0, y0 = (int(torch.randint(0, n, (), generator=generator)) for n in (60, 40))
            w, h = (int(torch.randint(4, 20, (), generator=generator)) for _ in range(2))
            p = 0.95 * float(torch.rand((), generator=generator))
            boxes.append((name, p, (x0, y0, x0 + w, y0 + h)))
        for relation in ("left of", "above"):
            asked = position(relation)
            reward = painted(detector, load, "soft", boxes)
            picture = pictures(1, 60, 90)
            entries = reward.soft(picture, asked, warmth=1e-3).tolist()
            _, number, _, count, aside = (entry > -0.6931 for entry in entries)
            faults = judge(
                {reward.classes[i]: ts for i, ts in
                 find_objects(reward.detector(picture), 0.3).items()}, asked, lambda taken, name: []
            )  # fmt: skip
            assert (number and count) == ("few" not in faults)
            if "few" not in faults:
                assert aside == (not faults)
                held[aside] += 1
    assert min(held.values()) > 5


def test_counts_colours_and_too_many(detector, load):
    boxes = [("dog", 0.999, (5, 5, 25, 25)), ("dog", 0.999, (40, 5, 60, 25))]
    two, three = (
        {"tag": "counting", "include": [{"class": "dog", "count": n}],
         "exclude": [{"class": "dog", "count": n + 1}]} for n in (2, 3)
    )  # fmt: skip
    picture = pictures(1, 60, 90)
    for mode, expected in ((None, (1, 0)), ("strict", (1, 0)), ("dense", (1, 2 / 3))):
        reward = painted(detector, load, mode, boxes)
        assert [reward.hard(picture, asked) for asked in (two, three)] == pytest.approx(expected)
    one = {"tag": "counting", "include": [{"class": "dog", "count": 1}],
           "exclude": [{"class": "dog", "count": 2}]}  # fmt: skip
    soft = painted(detector, load, "soft", boxes)
    assert soft.soft(picture, two).sum() > max(soft.soft(picture, a).sum() for a in (one, three))
    assert threshold(one) == 0.9
    assert threshold(DOG) == 0.3
    colours = soft.colours(picture, torch.ones(60, 90), (5.0, 5.0, 25.0, 25.0), "dog")
    asked = {"tag": "colors", "include": [{"class": "dog", "count": 1}]}
    for color, log in zip(("red", "orange"), colours.log_softmax(-1)[:2], strict=True):
        asked["include"][0]["color"] = color
        whole = painted(detector, load, "soft", [("dog", 0.95, (0, 0, 90, 60))])
        assert whole.soft(picture, asked).shape == (3,)
        assert torch.isfinite(log)


def test_a_picture_without_the_object_still_has_a_gradient(load):
    images = pictures(1, 64, 64).requires_grad_()
    score = load("geneval:soft")(images, ["a photo of a red dog"])
    assert score.item() < 0
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert gradient.abs().max() > 0


def test_gradient_is_that_of_finite_differences(load, float64_stays):
    reward = copy.deepcopy(load("geneval:soft")).double()
    prompts = ["a photo of a red dog", "a photo of a cat left of a dog", "a photo of two cats"]
    point = pictures(3, 64, 80).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(point, prompts).sum(), point)
    direction = torch.randn(point.shape, generator=torch.Generator().manual_seed(0)).double()
    direction = direction + 3 * gradient / gradient.square().mean().sqrt()
    with torch.no_grad():
        # So small a step that no pixel of a mask crosses 0.
        ahead, behind = (reward(point + s * 1e-8 * direction, prompts).sum() for s in (1, -1))
    slope = ((ahead - behind) / 2e-8).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_ten_steps_of_ascent_raise_the_soft_score(load):
    reward, images, prompts = load("geneval:soft"), pictures(1, 64, 64), ["a photo of a dog"]
    scores = []
    for _ in range(11):
        images = images.detach().requires_grad_()
        score = reward(images, prompts)
        (gradient,) = torch.autograd.grad(score.sum(), images)
        images = (images + 0.004 * gradient / gradient.square().mean().sqrt()).clamp(0, 1)
        scores.append(score.item())
    assert scores[-1] > scores[0]


def test_metadata_or_the_prompt_say_what_is_asked(load):
    images = pictures(2, 40, 48)
    prompts = ["a photo of a dog", "whatever"]
    with torch.no_grad():
        soft = load("geneval:soft")
        told = soft(images, prompts, [{}, DOG])
        said = soft(images, ["a photo of a dog"] * 2)
        torch.testing.assert_close(told, said)
        hard = load("geneval")
        assert not hard.differentiable
        assert hard(images, prompts, [{}, DOG]).tolist() == [0, 0]
        with pytest.raises(ValueError, match="'whatever' is no prompt of GenEval"):
            hard(images, prompts)
        with pytest.raises(ValueError, match=r"asks for 'dragon'; the detector of geneval knows"):
            hard(images, prompts, [DOG, {"include": [{"class": "dragon", "count": 1}]}])


def test_hard_scores_are_those_of_bytes(load):
    reward = load("geneval:dense")
    images = pictures(1, 40, 48)
    with torch.no_grad():
        assert reward(images, ["a photo of a dog"]) == reward(
            (images * 255).round() / 255, ["a photo of a dog"]
        )


def test_other_weights_are_said_to_be_others(detector, tmp_path, installed):
    folder = tmp_path / "facebook"
    detector.save_pretrained(folder)
    with pytest.warns(UserWarning, match="geneval by facebook is GenEval-like"):
        reward = load_reward(f"geneval:soft;model={folder}")
    images = pictures(1, 40, 48)
    with torch.no_grad():
        own = load_reward("geneval:soft")(images, ["a photo of a dog"])
        torch.testing.assert_close(reward(images, ["a photo of a dog"]), own)
    assert shared([f"geneval:model={folder}"], ["geneval:soft"])
    with pytest.raises(ValueError, match="geneval:hard: model is no Hub id"):
        load_reward("geneval:hard")


def test_groups_measure_what_is_documented(detector):
    with torch.no_grad():
        seen = Mask2Former(detector)(pictures(1, 60, 90))
        group = Group(seen, 3, 0.3, 1.0)
        p = seen.logits.softmax(-1)[:, 3]
    torch.testing.assert_close(group.odds.sigmoid(), p)
    assert group.surest(2) == group.scores.topk(2).indices.tolist()
    assert group.scores.max() <= p.max()
