"""`geneval2` and `questions`: prompts that bring their own questions."""

import math
import sys
from pathlib import Path

import pytest
import torch
from formula import pictures
from tiny_rewards import installed_weights, loader

from align.demo import choices
from align.rewards import load_reward
from align.rewards.catalogue import published
from align.rewards.geneval2 import GenEval2, soft_tifa, spellings, vqa_list
from align.rewards.identity import shared
from align.rewards.listing import list_rewards
from align.rewards.questions import Questions, combine, questions_of

installed = installed_weights
load = loader
ROWS = [
    {"vqa_list": [["How many dogs are there?", "four"], ["Is the dog red?", "Yes"]],
     "skills": ["count", "attribute"], "atom_count": 3},
    {"vqa_list": [["Is there a cat in this picture?", "Yes"]], "skills": ["object"],
     "atom_count": 4},
]  # fmt: skip
PROMPTS = ["four red dogs", "a cat"]
ASKED = [
    {"id": "1", "question": "Is there a dog?", "parents": []},
    {"id": "2", "question": "Is the dog red?", "parents": ["1"]},
    {"id": "3", "question": "Is the red dog asleep?", "parents": ["2"]},
    {"id": "4", "question": "Is it day?", "parents": ["9"]},
]


# --- geneval2 -------------------------------------------------------------------------------------


def test_answers_in_all_spellings():
    assert spellings("Yes") == ("Yes", "yes", " yes", " Yes")
    assert spellings("four") == ("four", "Four", " four", " Four", "4", " 4")


def brute_force(reward, picture, row):
    """p of each question by one question at a time, spelled out."""
    qwen, made = reward.qwen, []
    for question, answer in row["vqa_list"]:
        p = qwen.ask(picture, [f"{question} Answer in one word."]).softmax(-1)[0]
        made.append(sum(p[qwen.words(text)[0]] for text in spellings(answer)).item())
    return made


def test_scores_are_means_of_the_answers(load):
    images = pictures(2, 64, 64)
    with torch.no_grad():
        reward = load("geneval2").functions["geneval2"]
        assert isinstance(reward, GenEval2)
        p = [brute_force(reward, images[i : i + 1], row) for i, row in enumerate(ROWS)]
        geometric = [math.exp(sum(map(math.log, one)) / len(one)) for one in p]
        arithmetic = [sum(one) / len(one) for one in p]
        for argument, expected in (
            ("", geometric),
            (":mean=arithmetic", arithmetic),
            (":score=log", list(map(math.log, geometric))),
        ):
            scores = load(f"geneval2{argument}")(images, PROMPTS, ROWS)
            assert scores.tolist() == pytest.approx(expected, rel=1e-4)
        logs = [reward.logs(images[i : i + 1], vqa_list("", row)) for i, row in enumerate(ROWS)]
    table = soft_tifa(logs, ROWS)
    assert table["geometric"] == pytest.approx(100 * sum(geometric) / 2, rel=1e-4)
    assert table["arithmetic"] == pytest.approx(100 * sum(arithmetic) / 2, rel=1e-4)
    assert list(table["by_skill"]) == ["attribute", "count", "object"]
    assert table["by_skill"]["count"] == pytest.approx(100 * p[0][0], rel=1e-4)
    assert table["by_atoms"] == pytest.approx({3: 100 * geometric[0], 4: 100 * geometric[1]})


def test_a_blank_before_a_digit_counts_as_in_the_original(load):
    """Qwen splits them, so that the bare blank is the first token of ` 4`."""
    own, clean = (load(f"geneval2{a}").functions[f"geneval2{a}"] for a in ("", ":spellings=clean"))
    blank = own.qwen.words(" 4")[0]
    assert own.qwen.words(" ") == [blank]
    assert own.first_tokens("four").count(blank) >= 1
    assert blank not in clean.first_tokens("four")
    assert own.first_tokens("Yes") == clean.first_tokens("Yes")


def test_ascent_raises_the_log_and_batches_change_nothing(load):
    reward, images = load("geneval2:score=log"), pictures(2, 64, 64)
    first = None
    for _ in range(10):
        images = images.detach().requires_grad_()
        scores = reward(images, PROMPTS, ROWS)
        first = scores.detach() if first is None else first
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        images = (images + 0.004 * gradient / size).clamp(0, 1)
    with torch.no_grad():
        last = reward(images, PROMPTS, ROWS)
        alone = [reward(images[i : i + 1], PROMPTS[i : i + 1], ROWS[i : i + 1]) for i in (0, 1)]
    assert (last > first).all()
    torch.testing.assert_close(last, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_prompts_without_questions_are_refused(load):
    images = pictures(1, 64, 64)
    for metadata in (None, [{}], [{"vqa_list": ["one"]}]):
        with pytest.raises(ValueError, match=r"the column `vqa_list` of GenEval 2's file"):
            load("geneval2")(images, ["a dog"], metadata)
        with pytest.raises(ValueError, match="give a file of DSG-1k, DPG-Bench or TIFA as prompts"):
            load("questions")(images, ["a dog"], metadata)
    with pytest.raises(ValueError, match="mean is 'harmonic'; "):
        load_reward("geneval2:mean=harmonic")


def test_judges_by_one_qwen_or_one_rule_are_the_same(installed):
    eight = installed / "Qwen/Qwen3-VL-8B-Instruct"
    assert shared(["geneval2"], ["vlm:Qwen/Qwen3-VL-8B-Instruct"])
    assert shared(["geneval2"], [f"questions:soft;model={eight}"])
    assert shared(["geneval2:model=a/b"], ["geneval2"])
    assert not shared(["geneval"], ["geneval2"])


def test_new_names_are_listed_everywhere(installed):
    listed = {one.name: one for one in list_rewards()}
    docs = (Path(__file__).parents[1] / "docs/rewards.md").read_text(encoding="utf-8")
    choices.rewards.cache_clear()
    for name in ("vlm", "geneval", "geneval2", "questions", "hpsv3"):
        assert listed[name].installed, name
        assert name in published()
        assert f"`{name}`" in docs
        assert name in choices.rewards()
    choices.rewards.cache_clear()
    assert not {"torchvision", "cv2", "mmdet", "mmcv"} & set(sys.modules)


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "hard", "soft"),
    [
        ([0.9, 0.8, 0.7, 0.6], 1.0, (0.9 + 0.9 * 0.8 + 0.8 * 0.7 + 0.6) / 4),
        ([0.4, 0.8, 0.7, 0.6], 0.25, (0.4 + 0.4 * 0.8 + 0.8 * 0.7 + 0.6) / 4),
        ([0.9, 0.2, 0.7, 0.1], 0.25, (0.9 + 0.9 * 0.2 + 0.2 * 0.7 + 0.1) / 4),
    ],
)
def test_a_no_passes_on_to_children(shares, hard, soft):
    shares = torch.tensor(shares)
    assert combine(shares, ASKED, soft=False).item() == hard
    assert combine(shares, ASKED, soft=True).item() == pytest.approx(soft)


def test_each_question_is_asked_by_itself(load):
    picture = pictures(1, 64, 64)
    judge = load("questions").functions["questions"]
    assert isinstance(judge, Questions)
    rows = [*ASKED[:1], {"id": "2", "question": "Is it night?", "answer": "No"},
            {"id": "3", "question": "How many?", "choices": ["1", "2"], "answer": "2"}]  # fmt: skip
    with torch.no_grad():
        texts = ["Is there a dog?", "Is it night?", 'How many? Is the answer "2"?']
        yes = [judge.vlm.answers(picture, [f"{t} Please answer Yes or No."]).item() for t in texts]
        shares = judge.shares(picture, rows).tolist()
    assert shares == pytest.approx([yes[0], 1 - yes[1], yes[2]], abs=1e-5)
    assert questions_of("a", {"questions": [{"question": "b?"}]})[0]["id"] == "1"


def test_soft_questions_have_a_gradient_and_hard_ones_none(load):
    images = pictures(1, 64, 64).requires_grad_()
    metadata = [{"questions": ASKED}]
    soft = load("questions:soft")
    assert soft.differentiable
    (gradient,) = torch.autograd.grad(soft(images, ["a"], metadata).sum(), images)
    assert gradient.abs().max() > 0
    assert not load("questions").differentiable
    assert 4 * load("questions")(images.detach(), ["a"], metadata).item() in range(5)
