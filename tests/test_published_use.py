"""Published rewards in use: gradients, batches, arguments, missing and damaged weights."""

import copy
import json
import pickle

import pytest
import tiny_rewards as tiny
import torch
from formula import pictures
from tiny_rewards import DETECTORS, JUDGES, NETWORKS, installed_weights, loader

from align.cli import main
from align.rewards import load_reward
from align.rewards.catalogue import SETS
from align.rewards.detector import expected_number, read_wish
from align.rewards.expression import expand, parse_expression
from align.rewards.weights import find, read_checkpoint

PROMPTS = list(tiny.PROMPTS)
PATCHED = (*NETWORKS, "nsfw", *DETECTORS)
REWARDS = (*PATCHED, *JUDGES)
installed = installed_weights
load = loader


@pytest.fixture
def images():
    return pictures(2, 40, 48)


@pytest.mark.parametrize("name", REWARDS)
def test_gradient_is_that_of_finite_differences(load, name, images, float64_stays):
    reward = copy.deepcopy(load(name)).double()
    point = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(point, PROMPTS).sum(), point)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    direction = direction + 3 * gradient / gradient.square().mean().sqrt()
    with torch.no_grad():
        ahead, behind = (reward(point + s * 1e-6 * direction, PROMPTS).sum() for s in (1, -1))
    slope = ((ahead - behind) / 2e-6).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", REWARDS)
def test_ten_steps_of_ascent_raise_the_score(load, name, images):
    reward = load(name)
    assert reward.differentiable
    with torch.no_grad():
        before = reward(images, PROMPTS)
    for _ in range(10):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        images = (images + 0.004 * gradient / size).clamp(0, 1)
    with torch.no_grad():
        assert (reward(images, PROMPTS) > before).all()


@pytest.mark.parametrize("name", REWARDS)
def test_a_score_does_not_depend_on_the_batch(load, name):
    images, prompts = pictures(3, 40, 48), [*PROMPTS, "a cat"]
    reward = load(name)
    with torch.no_grad():
        whole = reward(images, prompts)
        single = [reward(images[i : i + 1], prompts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(single), rtol=1e-5, atol=1e-5)


def test_terms_of_one_expression_share_a_tower(load):
    both = load("aesthetic,clip,clip:laion/CLIP-ViT-H-14-laion2B-s32B-b79K,da-score,blip-vqa")
    towers = {name: getattr(f, "tower", None) for name, f in both.functions.items()}
    assert towers["aesthetic"].model is towers["clip"].model
    assert towers["clip"].model is not towers["clip:laion/CLIP-ViT-H-14-laion2B-s32B-b79K"].model
    assert both.functions["da-score"].answers is both.functions["blip-vqa"].answers
    assert load("clip").functions["clip"].tower.model is not towers["clip"].model


def test_sets_stand_for_their_terms(load, images):
    for name, text in SETS.items():
        assert expand(parse_expression(name), SETS) == parse_expression(text)
    reward = load("reno=2,jpeg=0.5")
    with torch.no_grad():
        mixed = reward.terms(images, PROMPTS)
        total = reward(images, PROMPTS)
    reno = mixed["hps"] * 5 + mixed["image-reward"] + 0.05 * mixed["pickscore"]
    reno = reno + 0.01 * mixed["clip:laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]
    torch.testing.assert_close(total, 2 * reno + 0.5 * mixed["jpeg"])
    with pytest.raises(ValueError, match=r"min\(reno\): a set stands in a sum"):
        load_reward("min(reno,jpeg)")
    with pytest.raises(ValueError, match="the set carinox takes no argument"):
        load_reward("carinox:x")
    with pytest.raises(ValueError, match="unknown reward 'carinx': did you mean carinox"):
        load_reward("carinx")


def test_small_pictures_and_long_prompts(load, images):
    for name in PATCHED:
        with pytest.raises(ValueError, match=r"images of 40x4 pixels are too small for \S+: its"):
            load(name)(images[..., :4], PROMPTS)
    long = "a red cube and a blue cube up and down"
    with pytest.warns(UserWarning, match=r"clip reads 24 tokens, .* has 31: its end is not read"):
        load("clip")(images, [long, "a"])
    with pytest.warns(UserWarning, match="image-reward reads 35 tokens"):
        load("image-reward")(images, ["a red cube " * 13, "a"])


# --- weights --------------------------------------------------------------------------------------


def test_everything_loads_from_local_paths(load, installed, images):
    places = {
        "aesthetic": installed / "christophschuhmann/improved-aesthetic-predictor"
        / "sac+logos+ava1-l14-linearMSE.pth",
        "blip-vqa": installed / "Salesforce/blip-vqa-base",
        "clip": installed / "openai/clip-vit-large-patch14",
        "da-score": installed / "Salesforce/blip-vqa-base",
        "detector": f"model={installed / 'google/owlvit-base-patch32'}",
        "hps": installed / "xswu/HPSv2/HPS_v2.1_compressed.pt",
        "image-reward": installed / "THUDM/ImageReward/ImageReward.pt",
        "mps": installed / "RE-N-Y/mpsv1/model.safetensors",
        "pickscore": installed / "yuvalkirstain/PickScore_v1",
        "vqascore": installed / "zhiqiulin/clip-flant5-xl",
    }  # fmt: skip
    with torch.no_grad():
        for name, place in places.items():
            local = load_reward(f"{name}:{place}")(images, PROMPTS)
            torch.testing.assert_close(local, load(name)(images, PROMPTS))


def test_questions_of_a_file(load, images, tmp_path, installed):
    questions = [["Is there a cube?"], ["Are there exactly two dogs?", "Is there a cat?"]]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(dict(zip(PROMPTS, questions, strict=True))))
    with torch.no_grad():
        scores = load_reward(f"da-score:{path}")(images, PROMPTS)
        answers = load("da-score").functions["da-score"].answers
        owner = torch.tensor([0, 1, 1])
        yes = answers(images, [q for row in questions for q in row], owner, "x")[:, answers.yes]
    assert torch.allclose(scores, torch.stack([yes[:1].exp().mean(), yes[1:].exp().mean()]))


def test_missing_weights_name_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ALIGN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    for name in (*NETWORKS, "detector", "detector:model=hustvl/yolos-tiny"):
        with pytest.raises(FileNotFoundError, match=rf"`align fetch {name}` downloads it \(about"):
            load_reward(name)
    assert main(["generate", "a", "--reward", "hps:2.0"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "hps:2.0 needs HPS_v2_compressed.pt of xswu/HPSv2, which is not installed" in said
    assert "`align fetch hps:2.0` downloads it (about 2.0 GB, licence Apache-2.0)" in said
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder \./none\.pt"):
        load_reward("hps:./none.pt")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("hps:3", "hps:3 is neither 2.0, 2.1 nor a path"),
        ("aesthetic:v3", "aesthetic:v3 is neither v1, v2 nor a path"),
        ("clip:large", "clip:large names no Hub id OWNER/NAME and no folder"),
        ("pickscore:x", "pickscore:x is no folder"),
        ("image-reward:x", "image-reward:x is no file or folder"),
        ("mps:x", "mps:x is no file or folder"),
        ("vqascore:large", "vqascore:large is neither clip-flant5-xl, clip-flant5-xxl nor"),
        ("detector:find=dog", r"cannot be read at 'find=dog'; allowed are one of present=NOUN"),
        ("detector:count=dog", "cannot be read at 'count=dog'"),
        ("detector:remove=dgo;model=hustvl/yolos-tiny", "does not know 'dgo'; did you mean dog"),
    ],
)
def test_bad_arguments(installed, expression, message):
    with pytest.raises(ValueError, match=message):
        load_reward(expression)


class Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_damaged_files_and_files_with_code_are_refused(installed, tmp_path, capsys):
    good = installed / "xswu/HPSv2/HPS_v2.1_compressed.pt"
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("cut.pt", "empty.pt", "text.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} is damaged.*fetch it again"):
            read_checkpoint(tmp_path / name)
    torch.save({"state_dict": {"a": Bomb()}}, tmp_path / "bomb.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.pt", "bare.pt"):
        with pytest.raises(ValueError, match=rf"{name} (holds objects that would run code|is dam)"):
            read_checkpoint(tmp_path / name)
    assert "this must not run" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds no dictionary of tensors"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"cut.pt is damaged"):
        load_reward(f"hps:{tmp_path / 'cut.pt'}")
    broken = tmp_path / "clip"
    tiny.save_clip_words(broken)
    source = installed / "openai/clip-vit-large-patch14"
    (broken / "config.json").write_bytes((source / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:9999])
    with pytest.raises(ValueError, match=r"cannot be read as a CLIPModel .* fetch it again"):
        load_reward(f"clip:{broken}")


# --- detector -------------------------------------------------------------------------------------


def test_wishes():
    wish = read_wish("count=fire hydrant:12;model=a/b")
    assert (wish.mode, wish.noun, wish.count, wish.model) == ("count", "fire hydrant", 12, "a/b")
    assert read_wish(None).noun is None
    assert read_wish("model=a/b").mode == "present"
    for wrong in ("remove=", "count=:3", "remove=a;present=b", "dog"):
        with pytest.raises(ValueError, match="cannot be read at"):
            read_wish(wrong)


def test_boxes_around_one_object_count_once():
    box, other = [0.3, 0.3, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]
    near = [0.31, 0.3, 0.2, 0.2]
    boxes = torch.tensor([[box, near, near, other, [0.5, 0.1, 0.1, 0.1]]])
    odds = torch.tensor([[6.0, 6.0, 6.0, 6.0, -20.0]])
    assert expected_number(odds, boxes).item() == pytest.approx(2.0, abs=0.01)
    assert expected_number(odds - 30, boxes).item() == pytest.approx(0.0, abs=0.01)


def test_presence_and_removal_are_opposites(load, images):
    with torch.no_grad():
        there = load("detector:present=dog")(images, PROMPTS)
        gone = load("detector:remove=dog")(images, PROMPTS)
        nouns = load("detector")(images, ["a dog", "a dog and a cat"])
        single = [load(f"detector:present={n}")(images, PROMPTS)[1] for n in ("dog", "cat")]
    torch.testing.assert_close(there.exp() + gone.exp(), torch.ones(2))
    torch.testing.assert_close(nouns, torch.stack([there[0], sum(single) / 2]))
    with pytest.raises(ValueError, match="knows no object of 'a red car'; it knows cat, cube, dog"):
        load("detector:model=hustvl/yolos-tiny")(images, ["a red car", "a dog"])


def test_find_prefers_the_given_folder(installed, tmp_path):
    from align.rewards.catalogue import CLIP_L

    tiny.save_model(tiny.clip_model(), tmp_path / CLIP_L.repo)
    tiny.save_clip_words(tmp_path / CLIP_L.repo)
    assert find(CLIP_L, "clip", tmp_path) == tmp_path / CLIP_L.repo
    assert find(CLIP_L, "clip") == installed / CLIP_L.repo
