"""`ocr`: the formula, and models that read."""

import random

import pytest
import tiny_rewards as tiny
import torch
from formula import pictures
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    TrOCRConfig,
    TrOCRForCausalLM,
    TrOCRProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from align.rewards import load_reward
from align.rewards.ocr import QUESTION, exact_match, levenshtein, likeness, quoted

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "open", "CLOSED", "7", *QUESTION.split()]
SIGN = 'a sign that says "Open 7"'


def plainly(a, b):
    """The distance by its recursion, on lists of rows: a second implementation."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(
                table[i - 1][j] + 1,
                table[i][j - 1] + 1,
                table[i - 1][j - 1] + (0 if a[i - 1] == b[j - 1] else 1),
            )
    return table[-1][-1]


def test_two_hundred_pairs():
    draw = random.Random(0)
    for _ in range(200):
        a, b = ("".join(draw.choices("abcé ßЖ", k=draw.randrange(12))) for _ in range(2))
        assert levenshtein(a, b) == plainly(a, b) == levenshtein(b, a)
        if not b.strip():
            continue
        r, t = (text.replace(" ", "").lower() for text in (a, b))
        right = 1.0 if t in r else 1 - min(plainly(r, t), len(t)) / len(t)
        assert likeness(a, b) == pytest.approx(right)
        assert 0 <= likeness(a, b) <= 1
    assert levenshtein("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("read", "wanted", "score"),
    [
        ("o p\nEN", "Open", 1.0),
        ("we are OPEN, open, open", "open", 1.0),  # surplus is free
        ("oben", "open", 0.75),
        ("", "open", 0.0),
        ("something else altogether", "no", 0.0),  # never below 0
        ("cafe\u0301", "CAFÉ", 1.0),  # composed or not
        ("Öffnung", "öffnung", 1.0),
        ("日本", "日本語", 2 / 3),
    ],
)
def test_the_formula(read, wanted, score):
    assert likeness(read, wanted) == pytest.approx(score)
    assert exact_match(read, wanted) == float(score == 1 and "we are" not in read)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign "OPEN" beside "CLOSED"', "OPEN"),
        ("a sign “Geöffnet” here", "Geöffnet"),
        ("ein Schild „offen“", "offen"),
        ('the word "don\'t"', "don't"),
    ],
)
def test_what_is_quoted(prompt, text):
    assert quoted(prompt) == text


@pytest.mark.parametrize("prompt", ["a sign", 'a sign "', 'a sign "" here', 'a "  " sign', "it's"])
def test_a_prompt_without_a_quotation_is_named(prompt):
    with pytest.raises(ValueError, match="quotes no text") as caught:
        quoted(prompt)
    assert repr(prompt) in str(caught.value)


def tokenizer() -> PreTrainedTokenizerFast:
    words = list(dict.fromkeys(WORDS))
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", additional_special_tokens=["<image>"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def trocr(tmp_path_factory):
    """A folder with a tiny TrOCR."""
    folder = tmp_path_factory.mktemp("trocr")
    vision = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        image_size=32, patch_size=8,
    )  # fmt: skip
    words = TrOCRConfig(
        vocab_size=len(set(WORDS)), d_model=32, decoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=48, cross_attention_hidden_size=32, max_position_embeddings=200,
        bos_token_id=1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, words)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(config, ViTModel(vision), TrOCRForCausalLM(words))
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.suppress_tokens = [0, 1, 2, 3, 4]  # or it would say nothing
    model.save_pretrained(folder)
    TrOCRProcessor(
        ViTImageProcessorPil(size={"height": 32, "width": 32}), tokenizer()
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with a tiny LLaVA, which answers questions."""
    folder = tmp_path_factory.mktemp("llava")
    text = LlamaConfig(
        vocab_size=len(set(WORDS)), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(**tiny.CLIP_VISION)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    config.image_seq_length = 16
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**size), tokenizer=tokenizer(), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_trocr_reads_as_its_documentation_calls_it(trocr):
    images = pictures(2, 40, 57)
    data = (255 * images).round().byte()
    reward = load_reward(f"ocr:{trocr}")
    assert not reward.differentiable
    (function,) = reward.functions.values()
    read = function.reader(images)
    processor = TrOCRProcessor.from_pretrained(trocr)
    model = VisionEncoderDecoderModel.from_pretrained(trocr).eval()
    for image, text in zip(data, read, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        values = processor(images=picture, return_tensors="pt").pixel_values
        ids = model.generate(values, do_sample=False, max_new_tokens=128)
        assert text == processor.batch_decode(ids, skip_special_tokens=True)[0]
    assert any(read)
    scores = reward(images, [SIGN, f'"{read[1]}"'])
    assert scores.tolist() == pytest.approx([likeness(read[0], "Open 7"), 1.0])
    exact = load_reward(f"ocr:{trocr};exact")(images, [SIGN, f'"{read[1]}"'])
    assert exact.tolist() == [0.0, 1.0]


def test_a_model_that_answers_questions_reads(llava):
    images = pictures(1, 32, 32)
    reward = load_reward(f"ocr:{llava}")
    (function,) = reward.functions.values()
    (text,) = function.reader(images)
    processor = LlavaProcessor.from_pretrained(llava)
    model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    picture = Image.fromarray((255 * images[0]).round().byte().permute(1, 2, 0).numpy())
    inputs = processor(images=picture, text=f"<image>{QUESTION}", return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=128)
    after = ids[0, inputs["input_ids"].shape[1] :]
    assert text == processor.tokenizer.decode(after, skip_special_tokens=True)
    assert reward(images, [SIGN]).tolist() == pytest.approx([likeness(text, "Open 7")])


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        (":likelihood", ValueError, "neither a Hub id"),
        (":a/b;most", ValueError, "the form is ocr:MODEL;exact"),
        ("", FileNotFoundError, "align fetch ocr"),
        (":/no/such/folder", FileNotFoundError, "no file or folder"),
    ],
)
def test_what_cannot_be_loaded(argument, error, message, monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGN_WEIGHTS", str(tmp_path))
    with pytest.raises(error, match=message):
        load_reward(f"ocr{argument}")
