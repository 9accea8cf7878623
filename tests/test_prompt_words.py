"""Warnings about words that a model cannot read."""

import logging

import pytest
from tiny import clip_tokenizer, tiny_pipeline
from transformers import CLIPTokenizer

from align.diffusion.denoisers import encode_prompts
from align.diffusion.prompt_limits import _warn, warn_about_prompts


@pytest.fixture(autouse=True)
def _forget(caplog):
    _warn.cache_clear()
    caplog.set_level(logging.WARNING, logger="align.diffusion.prompt_limits")


def said(caplog) -> str:
    """Our own messages; diffusers and transformers have theirs."""
    ours = [r.getMessage() for r in caplog.records if r.name == "align.diffusion.prompt_limits"]
    return "\n".join(ours)


class Pipeline:
    """As much of a pipeline as has to do with words."""

    def __init__(self, **tokenizers):
        self.components = tokenizers


def world_tokenizer():
    """Every word of a small world is one token."""
    plain = clip_tokenizer()
    vocab = plain.get_vocab()
    merges = [("r", "e"), ("re", "d</w>"), ("a", "n</w>")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def test_cut_off_words_are_named_once(caplog):
    pipe = tiny_pipeline("sd")  # spells: 14 letters fit
    encode_prompts(pipe, ["a red circle left of a star", "a red circle left of a star"])
    assert "reads 16 tokens; cut off from 'a red circle left of a star': 'of a star'" in said(
        caplog
    )
    encode_prompts(pipe, ["a red circle left of a star"])
    assert said(caplog).count("cut off") == 1


def test_short_prompts_are_fine(caplog):
    encode_prompts(tiny_pipeline("sd"), ["a red star"])
    assert not said(caplog)


def test_the_longest_window_counts(caplog):
    encode_prompts(tiny_pipeline("sd3"), ["a red circle left of a star"], max_sequence_length=40)
    assert not said(caplog)
    encode_prompts(tiny_pipeline("sd3"), ["a red circle left of a star"], max_sequence_length=17)
    assert "reads 17 tokens; cut off" in said(caplog)


@pytest.mark.parametrize(
    ("name", "around"),
    [("z-image", 8), ("klein", 14), ("qwen-image", 5), ("krea2", 5)],
)
def test_a_template_takes_its_part_of_the_window(name, around, caplog):
    pipe, length = tiny_pipeline(name), around + 20
    for prompt in (20 * "x", 19 * "x" + "yz"):
        warn_about_prompts(pipe, [prompt], length)
        assert ("cut off" in said(caplog)) == prompt.endswith("z"), said(caplog)
    assert said(caplog).endswith("'z'")


def test_unknown_words_of_a_small_world_are_named(caplog):
    pipe = Pipeline(tokenizer=world_tokenizer())
    warn_about_prompts(pipe, ["Red, red an"], None)
    assert not said(caplog)
    warn_about_prompts(pipe, ["red zebra", "an ox"], None)
    assert "never saw these words of 'red zebra': zebra" in said(caplog)
    assert "never saw these words of 'an ox': ox" in said(caplog)


def test_pipelines_without_tokenizer_say_nothing(caplog):
    warn_about_prompts(Pipeline(tokenizer=None), ["zebra " * 99], None)
    assert not said(caplog)
