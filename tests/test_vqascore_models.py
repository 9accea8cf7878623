"""`vqascore` by other models of transformers: a tiny LLaVA, called as its documentation says."""

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
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from align.rewards import load_reward
from align.rewards.clip_t5 import QUESTION
from align.rewards.processors import read_view

WORDS = ["<pad>", "<unk>", "<image>", "Yes", "Does", "this", "figure", "show", '"', "a", "red",
         "cube", "?", "Please", "answer", "yes", "or", "no", ".", "two", "dogs", "and",
         "cat"]  # fmt: skip
SIZE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    made.add_tokens(["<image>"], special_tokens=True)
    return made


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with a tiny LLaVA and its processor, without a chat template."""
    folder = tmp_path_factory.mktemp("llava")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tiny.CLIP_VISION),
        text_config=LlamaConfig(
            vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
            eos_token_id=None,
        ),
        image_token_index=WORDS.index("<image>"),
        image_seq_length=16,
    )  # fmt: skip
    tiny.filled(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**SIZE), tokenizer=tokenizer(), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize(("height", "width", "tolerance"), [(32, 32, 1e-4), (40, 57, 1e-2)])
def test_as_the_processor_and_the_model_say(llava, height, width, tolerance):
    data = (pictures(2, height, width) * 255).round().byte()
    reward = load_reward(f"vqascore:{llava}")
    with torch.no_grad():
        ours = reward(data / 255, list(tiny.PROMPTS))
        processor = LlavaProcessor.from_pretrained(llava)
        model = LlavaForConditionalGeneration.from_pretrained(llava)
        for row, prompt, score in zip(data, tiny.PROMPTS, ours, strict=True):
            inputs = processor(
                images=Image.fromarray(row.permute(1, 2, 0).numpy()),
                text=f"<image>{QUESTION.format(prompt)}",
                return_tensors="pt",
            )
            theirs = model(**inputs).logits[0, -1].softmax(-1)[WORDS.index("Yes")]
            assert score.item() == pytest.approx(theirs.item(), rel=tolerance)


def test_it_has_a_gradient(llava):
    images = pictures(1, 40, 48).requires_grad_()
    score = load_reward(f"vqascore:{llava}")(images, ["a red cube"])
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert gradient.abs().max() > 0


def test_processors_that_do_more_are_refused():
    class Tiled(CLIPImageProcessorPil):
        def __call__(self, *arguments, **settings):
            made = super().__call__(*arguments, **settings)
            made["pixel_values"] = made["pixel_values"].flip(-1)
            return made

    view = read_view(CLIPImageProcessorPil(**SIZE), "plain")
    assert view.crop == 32
    with pytest.raises(ValueError, match=r"the processor of odd, Tiled, does more than resize"):
        read_view(Tiled(**SIZE), "odd")
