"""The reward interface: terms, combinations, user functions, bad input; and the JPEG rewards."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from align.rewards import load_judge, load_reward
from align.rewards.jpeg import jpeg_kilobytes
from align.scenes import sample

PROMPTS = ["a red circle", "two green stars"]


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def redness(images, prompts):
    return images[:, 0].mean((1, 2))


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"
        "def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n"
        "def tagged(images, prompts, metadata):\n"
        "    return images.mean((1, 2, 3)) + images.new_tensor([m.get('x', 0) for m in metadata])\n"
        "def tupled(images, prompts, metadata):\n    return [1.0 for _ in prompts], {'note': 1}\n"
        "def wrong(images, prompts):\n    return images.mean((1, 2))\n"
        "def broken(images, prompts):\n    raise KeyError('oops')\n"
        "def text(images, prompts):\n    return 'high'\n"
        "tupled.differentiable = False\n"
    )
    return path


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_terms_weights_and_combinations(user_file, images):
    bright, red = brightness(images, PROMPTS), redness(images, PROMPTS)
    a, b = f"{user_file}:bright", f"{user_file}:red"
    total = load_reward(f"{a}=2,{b}=-0.5")
    assert torch.allclose(total(images, PROMPTS), 2 * bright - 0.5 * red)
    terms = total.terms(images, PROMPTS)
    assert list(terms) == [a, b]
    assert torch.equal(terms[a], bright)
    least = load_reward(f"min({a},{b}=0.9)")(images, PROMPTS)
    assert torch.allclose(least, torch.minimum(bright, 0.9 * red))
    product = load_reward(f"product({a},{b})=3")(images, PROMPTS)
    assert torch.allclose(product, 3 * bright * red)


def test_normalised_terms_use_stored_statistics(tmp_path, images):
    table = tmp_path / "statistics.json"
    table.write_text(json.dumps({"jpeg": {"mean": -2.0, "std": 0.5}}))
    raw = load_reward("jpeg")(images, PROMPTS)
    score = load_reward("z(jpeg=3)", statistics=table)(images, PROMPTS)
    assert torch.allclose(score, 3 * (raw + 2) / 0.5)
    with pytest.raises(ValueError, match=r"z\(jpeg-complexity\) needs base statistics.*jpeg"):
        load_reward("z(jpeg-complexity)", statistics=table)
    with pytest.raises(FileNotFoundError, match="no statistics file"):
        load_reward("z(jpeg)", statistics=tmp_path / "absent.json")


def test_metadata_reaches_functions_that_ask_for_it(user_file, images):
    reward = load_reward(f"{user_file}:tagged,{user_file}:bright=0")
    with_tags = reward(images, PROMPTS, [{"x": 1}, {"x": 2}])
    assert torch.allclose(with_tags - reward(images, PROMPTS), torch.tensor([1.0, 2.0]))


def test_a_callable_and_a_module_are_rewards(images):
    assert torch.equal(load_reward(brightness)(images, PROMPTS), brightness(images, PROMPTS))

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images, prompts):
            return self.scale * images.mean((1, 2, 3))

    reward = load_reward(Learned()).double()
    assert reward(images.double(), PROMPTS).dtype == torch.float64
    assert load_reward(reward) is reward
    with pytest.raises(TypeError, match=r"f\(images, prompts\)"):
        load_reward(lambda images: images)


def test_gradients_flow_or_their_absence_is_said(user_file, images):
    images.requires_grad_()
    reward = load_reward(f"{user_file}:bright")
    assert reward.differentiable
    assert torch.autograd.grad(reward(images, PROMPTS).sum(), images)[0].abs().sum() > 0
    flat = load_reward(f"{user_file}:tupled")
    assert not flat.differentiable
    assert flat(images, PROMPTS).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="without a gradient"):
        load_reward(lambda images, prompts: images.mean((1, 2, 3)).detach())(images, PROMPTS)


def test_micro_batches_change_nothing(images):
    many = images.repeat(4, 1, 1, 1).requires_grad_()
    prompts = PROMPTS * 4
    whole, pieces = load_reward("jpeg"), load_reward("jpeg", micro_batch_size=3)
    assert torch.allclose(whole(many, prompts), pieces(many, prompts), atol=1e-6)
    gradients = [torch.autograd.grad(r(many, prompts).sum(), many)[0] for r in (whole, pieces)]
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[0], ValueError, r"\[batch, 3, height, width\], got \[3, 16, 16\]"),
        (lambda x: x[:, :1], ValueError, r"got \[2, 1, 16, 16\]"),
        (lambda x: x[:0], ValueError, r"got \[0, 3, 16, 16\]"),
        (lambda x: x * 2, ValueError, r"must lie in \[0, 1\], got values from"),
        (lambda x: x - 0.5, ValueError, r"must lie in \[0, 1\]"),
        (lambda x: x * float("nan"), ValueError, "must be finite"),
        (lambda x: (x * 255).byte(), TypeError, "floating point in .* got torch.uint8"),
        (lambda x: x.numpy(), TypeError, "must be a torch.Tensor, got ndarray"),
    ],
)
def test_bad_images(images, change, error, message):
    with pytest.raises(error, match=message):
        load_reward("jpeg")(change(images), PROMPTS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([*PROMPTS, "a cat"], ValueError, "got 3 prompts for 2 images"),
        (["a cat", " "], ValueError, "prompt 1 is empty"),
        ("ab", TypeError, "must be a list of str, got str"),
        (["a", 3], TypeError, "prompt 1 must be a str, got int"),
    ],
)
def test_bad_prompts(images, prompts, error, message):
    with pytest.raises(error, match=message):
        load_reward("jpeg")(images, prompts)


def test_bad_metadata(images):
    with pytest.raises(ValueError, match="got 1 metadata for 2 images"):
        load_reward("jpeg")(images, PROMPTS, [{}])


def test_unknown_names_and_refused_judges(user_file, tmp_path):
    with pytest.raises(ValueError, match="unknown reward 'scene-clip': did you mean scenes-clip"):
        load_reward("scene-clip")
    with pytest.raises(ValueError, match="judge, not a training signal"):
        load_reward("jpeg,verifier=1")
    with pytest.raises(ValueError, match="takes no argument, got 'x'"):
        load_reward("jpeg:x")
    with pytest.raises(FileNotFoundError, match="no reward file"):
        load_reward(f"{tmp_path}/absent.py:f")
    with pytest.raises(ValueError, match="has no function 'brigt': did you mean bright"):
        load_reward(f"{user_file}:brigt")
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"cannot import reward file .* SyntaxError"):
        load_reward(f"{tmp_path}/bad.py:f")
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1"):
        load_reward("jpeg", micro_batch_size=0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", r"scores of shape \[2\], got \[2, 16\]"),
        ("broken", "raised KeyError: 'oops'"),
        ("text", "one number per image, got str"),
    ],
)
def test_user_functions_that_misbehave(user_file, images, function, message):
    with pytest.raises(ValueError, match=message):
        load_reward(f"{user_file}:{function}")(images, PROMPTS)


def test_a_judge_takes_rewards_too(images):
    assert torch.equal(load_judge("jpeg")(images, PROMPTS), load_reward("jpeg")(images, PROMPTS))


# --- jpeg -----------------------------------------------------------------------------------------


def pillow_kilobytes(image) -> float:
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return len(buffer.getvalue()) / 1000


def renders(count: int):
    categories = ("single", "texture", "complex", "numeracy")
    arrays = [sample(categories[i % 4], seed=1000 + i)[1] for i in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255


def test_jpeg_size_follows_pillow():
    pictures = renders(40)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    noisy = (pictures + torch.logspace(-3, -0.5, 40)[:, None, None, None] * noise).clamp(0, 1)
    for batch in (pictures, noisy, torch.cat([pictures, noisy])):
        true = torch.tensor([pillow_kilobytes(image) for image in batch])
        estimate = jpeg_kilobytes(batch)
        assert spearmanr(true, estimate).statistic > 0.97
        assert ((estimate - true).abs() / true).mean() < 0.05


def test_jpeg_sizes_that_are_no_multiple_of_16():
    image = renders(2)[1:, :, :50, 10:47]
    assert jpeg_kilobytes(image).item() == pytest.approx(pillow_kilobytes(image[0]), rel=0.06)


def test_jpeg_and_its_opposite():
    images = renders(2)
    terms = load_reward("jpeg,jpeg-complexity").terms(images, PROMPTS)
    assert torch.equal(terms["jpeg"], -terms["jpeg-complexity"])


def test_jpeg_gradient_is_exact_and_shrinks_real_files():
    images = (0.1 + 0.8 * renders(2)).double().requires_grad_()
    reward = load_reward("jpeg")
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).double()
    step = 1e-6 * direction
    with torch.no_grad():
        change = (reward(images + step, PROMPTS) - reward(images - step, PROMPTS)).sum() / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(change.item(), rel=1e-4)

    # like a generator's output, a picture with some texture of its own
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4)).double()
    noisy = (images.detach() + 0.05 * noise).clamp(0, 1)
    smaller = noisy
    for _ in range(20):
        smaller = smaller.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(smaller, PROMPTS).sum(), smaller)
        smaller = (smaller + 0.008 * gradient / gradient.square().mean().sqrt()).clamp(0, 1)
    before = sum(pillow_kilobytes(image) for image in noisy)
    assert sum(pillow_kilobytes(image) for image in smaller.detach()) < 0.8 * before
