"""`vlm` and a Qwen behind `vqascore`: against the stock processor, model and `generate`."""

import json

import numpy as np
import pytest
import torch
from formula import pictures
from PIL import Image
from tiny_qwen import KINDS, save_qwen
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from align.rewards import load_reward
from align.rewards.qwen import QwenView, load_qwen, read_qwen_view
from align.rewards.vlm import QUESTION, Vlm
from align.rewards.vqascore import QWEN_QUESTIONS

PROMPTS = ["a red cube", "two dogs and a cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("qwen")
    return {kind: save_qwen(root / kind, kind, penalty=1.05) for kind in KINDS}


def as_pil(picture) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def in_bytes(count, height, width):
    return (pictures(count, height, width) * 255).round() / 255


# --- the view -------------------------------------------------------------------------------------

SIZES = [(64, 64), (96, 64), (56, 84), (40, 48), (100, 30), (30, 200), (12, 16), (300, 200)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_the_processor(folders, kind, size):
    processor = Qwen2VLImageProcessorPil.from_pretrained(folders[kind])
    view = read_qwen_view(folders[kind])
    picture = in_bytes(1, *size)
    theirs = processor(as_pil(picture[0]), return_tensors="pt")
    ours, grid = view(picture)
    assert torch.equal(grid, theirs["image_grid_thw"])
    assert ours.shape == theirs["pixel_values"].shape
    rest = (ours - theirs["pixel_values"]).abs().max() * 255 * min(view.std)
    assert rest <= (2.5 if view.size(*size) != size else 1e-5 * 255)


@pytest.mark.parametrize("size", [(1024, 1024), (768, 768), (28, 28), (5000, 5000), (42, 70)])
def test_sizes_are_transformers_own(size):
    expected = smart_resize(*size, factor=28, min_pixels=3136, max_pixels=12845056)
    assert QwenView(least=3136, most=12845056).size(*size) == expected


def test_long_pictures_and_small_limits_are_refused(folders):
    with pytest.raises(ValueError, match="one side may be 200 times the other at most"):
        QwenView().size(10, 2001)
    with pytest.raises(ValueError, match=r"pixels:20 is less than one token of .*, 1024 pixels"):
        load_reward(f"vlm:{folders['qwen3_vl']};pixels:20")
    view = read_qwen_view(folders["qwen3_vl"], 2048)
    assert view.size(640, 640) == (32, 32)


# --- scores ---------------------------------------------------------------------------------------


def generated(folder, picture, question):
    """Raw logits, and scores after `generate`'s processors, of the first token."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(as_pil(picture), return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = words.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    count = int(seen["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
    inputs = words(text, return_tensors="pt")
    ids = inputs["input_ids"]
    made = model.generate(
        **inputs, **seen, mm_token_type_ids=(ids == model.config.image_token_id).int(),
        max_new_tokens=1, do_sample=False, output_logits=True, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return made.logits[0][0], made.scores[0][0], words


def expected(logits, words, score):
    p = logits.softmax(-1)
    first = [
        words(w, add_special_tokens=False).input_ids[0] for w in ("Yes", "yes", " yes", " Yes")
    ]
    no = [words(w, add_special_tokens=False).input_ids[0] for w in ("No", "no", " no", " No")]
    digits = [words(str(k)).input_ids[0] for k in range(1, 6)]
    share = p[first].sum() / (p[first].sum() + p[no].sum())
    return {
        "p": p[first[0]],
        "sum": p[first].sum(),
        "share": share,
        "odds": share.logit(),
        "scale:1-5": logits[digits].softmax(-1) @ torch.arange(1.0, 6.0),
    }[score]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_generates_logits(folders, kind, tmp_path):
    ask = tmp_path / "ask.txt"
    ask.write_text('Is there "{prompt}"? {no hole} ')
    picture = in_bytes(1, 64, 64) if kind == "qwen3_vl" else in_bytes(1, 56, 84)
    with torch.no_grad():
        raw, processed, words = generated(
            folders[kind], picture[0], 'Is there "a red cube"? {no hole}'
        )
        for score in ("p", "sum", "share", "odds", "scale:1-5"):
            for penalty, logits in (("", raw), (";penalty=own", processed)):
                term = f"vlm:{folders[kind]};ask=@{ask};score={score}{penalty}"
                ours = load_reward(term)(picture, PROMPTS[:1])
                theirs = expected(logits, words, score)
                assert ours.item() == pytest.approx(theirs.item(), rel=1e-4), (score, penalty)
    assert (raw - processed).abs().max() > 1e-4


def test_an_answer_of_several_tokens(folders):
    folder = folders["qwen3_vl"]
    picture = in_bytes(1, 64, 64)
    question = QUESTION.replace("{prompt}", PROMPTS[0])
    with torch.no_grad():
        ours = load_reward(f"vlm:{folder};answer=dog")(picture, PROMPTS[:1])
        qwen = load_qwen(folder, None)
        logs, told = [], ""
        for letter in "dog":
            text, ids = qwen.chat, qwen.words(letter)
            qwen.chat = lambda q, n=1, text=text, told=told: text(q, n) + told
            logs.append(qwen.ask(picture, [question]).log_softmax(-1)[0, ids[0]])
            qwen.chat, told = text, told + letter
    assert ours.item() == pytest.approx(torch.stack(logs).mean().exp().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_vqascore_asks_a_qwen_as_its_authors_do(folders, kind):
    picture = in_bytes(1, 56, 56)
    with torch.no_grad():
        ours = load_reward(f"vqascore:{folders[kind]};pixels:4096")(picture, PROMPTS[:1])
        qwen = load_qwen(folders[kind], None, 4096)
        question = QWEN_QUESTIONS[kind].replace("{prompt}", PROMPTS[0])
        p = qwen.ask(picture, [question]).softmax(-1)[0, qwen.words("Yes")[0]]
    assert ours.item() == pytest.approx(p.item(), rel=1e-6)


def test_questions_together_are_questions_one_by_one(folders):
    for folder in folders.values():
        qwen = load_qwen(folder, None)
        questions = ["a?", "is there a red cube in it?", "why"]
        with torch.no_grad():
            together = qwen.ask(in_bytes(1, 64, 64), questions)
            single = [qwen.ask(in_bytes(1, 64, 64), [question]) for question in questions]
        torch.testing.assert_close(together, torch.cat(single), rtol=1e-5, atol=1e-5)


def test_logits_of_half_precision_states_are_made_in_float32(folders):
    qwen = load_qwen(folders["qwen3_vl"], None)
    qwen.model.lm_head.bfloat16()
    states = torch.randn(2, 32).bfloat16().requires_grad_()
    weight = qwen.model.lm_head.weight.float()
    logits = qwen.logits(states)
    torch.testing.assert_close(logits, states.float() @ weight.T)
    (slope,) = torch.autograd.grad(logits.sum(), states)
    torch.testing.assert_close(slope, weight.sum(0).expand(2, -1).bfloat16())
    torch.testing.assert_close(qwen.logits(states, [3, 5]), logits[:, [3, 5]])


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_those_of_plain_autograd(folders, kind):
    reward = load_reward(f"vlm:{folders[kind]}").functions[f"vlm:{folders[kind]}"]
    assert isinstance(reward, Vlm)
    images = pictures(2, 50, 60).requires_grad_()
    (ours,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    asked = [QUESTION.replace("{prompt}", prompt) for prompt in PROMPTS]
    plain = [reward.answers(images[i : i + 1], [asked[i]]) for i in range(2)]
    (theirs,) = torch.autograd.grad(torch.cat(plain).sum(), images)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("score=maybe", "score is 'maybe'; allowed are odds, p, sum, share and scale:LOW-HIGH"),
        ("score=scale:5-1", "allowed are odds"),
        ("answer=dog;score=p", "answer= is a score of its own"),
        ("penalty=mine", "penalty is 'mine'; "),
        ("colour=red", "cannot be read at 'colour=red'; allowed are score="),
    ],
)
def test_bad_arguments(folders, argument, message):
    with pytest.raises(ValueError, match=message):
        load_reward(f"vlm:{folders['qwen3_vl']};{argument}")


def test_marks_in_a_prompt_and_thinking_models_are_refused(folders, tmp_path):
    reward = load_reward(f"vlm:{folders['qwen3_vl']}")
    with pytest.raises(ValueError, match=r"<\|im_end\|> may not stand in a question"):
        reward(in_bytes(1, 64, 64), ["a dog<|im_end|>"])
    with pytest.raises(ValueError, match="names no Hub id OWNER/NAME and no folder"):
        load_reward("vlm:qwen")
    folder = save_qwen(tmp_path / "thinking")
    file = next(folder.glob("chat_template.jinja"))
    file.write_text(file.read_text().replace("assistant\n", "assistant\n<think>\n"))
    with pytest.raises(ValueError, match="thinks before it answers"):
        load_reward(f"vlm:{folder}")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llava"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is a llava; a picture's questions take qwen2_vl"):
        load_reward(f"vlm:{folder}")


def test_the_picture_is_not_rounded(folders):
    """Scores follow changes that bytes would not show."""
    reward = load_reward(f"vlm:{folders['qwen3_vl']}").double()
    images = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    with torch.no_grad():
        assert reward(images, PROMPTS[:1]) != reward(images + 1e-4, PROMPTS[:1])
    assert np.isfinite(reward(images, PROMPTS[:1]).item())
