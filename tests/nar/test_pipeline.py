"""NARPipeline as a diffusers pipeline."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from align.nar import (
    ImageTokenizer,
    NARPipeline,
    NARScheduler,
    NARTransformer2DModel,
    generate_ids,
)
from align.nar.text import learn_words, small_encoder

LABELS = {0: "cat", 1: "dog"}


def transformer(**config):
    settings = {
        "grid_shape": (3, 4),
        "vocab_size": 15,
        "width": 16,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_width": 16,
        "num_classes": 2,
    }
    torch.manual_seed(0)
    model = NARTransformer2DModel(**(settings | config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def image_tokenizer():
    torch.manual_seed(1)
    return ImageTokenizer(image_size=(12, 16), widths=(8, 8, 8), blocks=1, levels=(5, 3)).eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def class_pipe():
    return quiet(NARPipeline(transformer(), image_tokenizer(), NARScheduler(), id2label=LABELS))


@pytest.fixture
def text_pipe():
    words = learn_words(["a red circle", "two blue squares"], 8)
    encoder = small_encoder(words, 16, 8).eval()
    model = transformer(
        condition="text",
        condition_width=16,
        num_condition_tokens=8,
        use_condition_mask=False,
        cond_rope="identity",
    )
    return quiet(NARPipeline(model, image_tokenizer(), NARScheduler(), words, encoder))


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def test_output_types(class_pipe):
    def call(kind):
        return class_pipe(class_labels=["dog"], generator=seeds(3), output_type=kind).images

    ids, images, array, pictures = (call(kind) for kind in ("latent", "pt", "np", "pil"))
    assert ids.shape == (1, 12)
    assert torch.equal(ids, generate_ids(class_pipe.transformer, torch.tensor([1]),
                                         generator=seeds(3)))  # fmt: skip
    assert torch.equal(images, class_pipe.image_tokenizer.decode(ids))
    assert array.shape == (1, 12, 16, 3)
    assert pictures[0].size == (16, 12)
    assert np.abs(np.asarray(pictures[0]) / 255 - array[0]).max() < 1 / 255
    (from_tuple,) = class_pipe(
        class_labels=1, generator=seeds(3), output_type="latent", return_dict=False
    )
    assert torch.equal(from_tuple, ids)


@pytest.mark.parametrize("kind", ["class_pipe", "text_pipe"])
def test_saved_and_loaded_pipelines_draw_the_same(kind, request, tmp_path):
    pipe = request.getfixturevalue(kind)
    condition = {"prompt": "a red circle"} if kind == "text_pipe" else {"class_labels": "cat"}
    ids = pipe(**condition, generator=seeds(5), output_type="latent").images
    pipe.save_pretrained(tmp_path)
    again = quiet(NARPipeline.from_pretrained(tmp_path))
    assert torch.equal(again(**condition, generator=seeds(5), output_type="latent").images, ids)


def test_a_fresh_interpreter_loads_a_saved_pipeline(class_pipe, tmp_path):
    class_pipe.save_pretrained(tmp_path)
    code = f"import align; print(align.nar.NARPipeline.from_pretrained({str(tmp_path)!r}).config)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout
    assert "Expected types" not in done.stderr


def test_stream_ends_with_the_picture_and_starts_grey(class_pipe):
    steps = list(class_pipe.stream(class_labels=[0, 1], generator=seeds(1, 2)))
    assert [step.index for step in steps] == list(range(6))
    unknown = [int((step.ids < 0).sum()) for step in steps]
    assert unknown == [22, 18, 12, 6, 2, 0]
    assert (steps[0].image[:, :, 4:, :] == 0.5).all()
    assert (steps[0].image[:, :, :4, 4:] == 0.5).all()
    final = class_pipe(class_labels=[0, 1], generator=seeds(1, 2), output_type="pt").images
    assert torch.equal(steps[-1].image, final)


def test_callback_sees_every_wavefront_and_can_stop(class_pipe):
    seen = []

    def watch(pipe, index, timestep, values):
        seen.append((index, int((values["ids"] >= 0).sum())))
        pipe._interrupt = index == 2
        return {}

    class_pipe(class_labels=0, callback_on_step_end=watch)
    assert seen == [(0, 1), (1, 3), (2, 6)]


def test_settings_override_the_schedulers_own(class_pipe):
    class_pipe.scheduler = NARScheduler(temperature=0.0, guidance_scale=3.0)
    own = class_pipe(class_labels=0, output_type="latent").images
    condition = torch.tensor([0])
    model = class_pipe.transformer
    assert torch.equal(own, generate_ids(model, condition, greedy=True, guidance_scale=3.0))
    changed = class_pipe(class_labels=0, guidance_scale=1.0, output_type="latent").images
    assert torch.equal(changed, generate_ids(model, condition, greedy=True))


def test_copies_and_given_tokens(class_pipe):
    given = torch.full((1, 12), -1)
    given[:, :4] = torch.tensor([1, 2, 3, 4])
    ids = class_pipe(
        class_labels=[0, 1],
        num_images_per_prompt=2,
        generator=seeds(1, 2, 3, 4),
        given_ids=given,
        output_type="latent",
    ).images
    assert ids.shape == (4, 12)
    assert (ids[:, :4] == given[:, :4]).all()
    alone = class_pipe(class_labels=1, generator=seeds(3), given_ids=given, output_type="latent")
    assert torch.equal(alone.images, ids[2:3])


def test_masked_prompts_are_left_padded(text_pipe):
    masked = transformer(condition="text", condition_width=16, num_condition_tokens=8)
    pipe = NARPipeline(masked, text_pipe.image_tokenizer, NARScheduler(), text_pipe.tokenizer,
                       text_pipe.text_encoder)  # fmt: skip
    features, mask = pipe.encode_prompt(["a red circle", "two blue squares a red circle"])
    assert mask is not None
    assert mask.diff(dim=1).int().min() >= 0  # padding first
    assert (features[~mask] == 0).all()
    plain, none = text_pipe.encode_prompt(["a red circle"])
    assert none is None
    length = int(mask[0].sum())
    torch.testing.assert_close(features[0, -length:], plain[0, :length])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"class_labels": "bird"}, ValueError, "unknown class 'bird': known are cat, dog"),
        ({"class_labels": 7}, ValueError, "class 7 is out of range: 0 to 1"),
        ({}, ValueError, "class-conditional"),
        ({"prompt": "a cat"}, ValueError, "class-conditional"),
        ({"class_labels": 0, "guidance_scale": 0.5}, ValueError, "guidance scale 0.5"),
        ({"class_labels": 0, "output_type": "jpeg"}, ValueError, "output_type 'jpeg'"),
        ({"class_labels": 0, "num_images_per_prompt": 0}, ValueError, "num_images_per_prompt 0"),
        ({"class_labels": 0, "given_ids": torch.full((1, 12), 15)}, ValueError, "codebook"),
    ],
)
def test_bad_calls_are_refused(class_pipe, call, error, message):
    with pytest.raises(error, match=message):
        class_pipe(**call)


@pytest.mark.usefixtures("unchecked")
def test_bad_prompts_are_refused(text_pipe):
    with pytest.raises(ValueError, match="prompt is empty"):
        text_pipe("  ")
    with pytest.raises(TypeError, match="a prompt is a str"):
        text_pipe([3])
    with pytest.raises(ValueError, match="text-conditional"):
        text_pipe(class_labels=0)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"grid \(4, 4\) does not match"):
        NARPipeline(transformer(grid_shape=(4, 4)), image_tokenizer(), NARScheduler())
    with pytest.raises(ValueError, match="predicts 16 codes, the image tokenizer has 15"):
        NARPipeline(transformer(vocab_size=16), image_tokenizer(), NARScheduler())
    with pytest.raises(FileNotFoundError, match="no model embedded/absent"):
        NARPipeline.from_pretrained("embedded/absent")
