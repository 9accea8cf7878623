"""What reward models see: against Pillow, by geometry, by gradient."""

import numpy as np
import pytest
import torch
from PIL import Image

from align.rewards.resize import (
    check_size,
    crop_to,
    letterbox,
    normalise,
    resize,
    square_pad,
)


def picture(height: int, width: int, seed: int = 0):
    """A smooth picture with some noise, [1, 3, h, w]."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = torch.stack([torch.sin(y + x), torch.cos(2 * x), torch.sin(x * y)])
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return (0.5 + 0.35 * waves + 0.1 * (noise - 0.5))[None].clamp(0, 1)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(14, 22), (60, 50), (33, 90)])
def test_resizing_agrees_with_pillow(mode, size):
    image = picture(48, 64)
    array = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    kind = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    theirs = np.asarray(Image.fromarray(array).resize(size[::-1], kind)) / 255
    ours = resize(torch.from_numpy(array / 255).permute(2, 0, 1)[None], size, mode)
    difference = np.abs(ours[0].permute(1, 2, 0).clamp(0, 1).numpy() - theirs)
    assert difference.max() < 1.6 / 255  # two roundings to bytes


def test_geometry():
    tall = picture(60, 31)
    assert crop_to(tall, 20).shape == (1, 3, 20, 20)
    assert torch.equal(crop_to(tall, 31), tall[..., 14:45, :])
    # a margin of 29 - 20 = 9 pixels: 4 before it in transformers and, half to even, torchvision;
    # of 27 - 20 = 7: 3 and 4
    strip = torch.arange(27.0).view(1, 1, 1, 27).expand(1, 3, 20, 27)
    assert crop_to(strip, 20)[0, 0, 0, 0] == 3
    assert crop_to(strip, 20, half_to_even=True)[0, 0, 0, 0] == 4

    boxed = letterbox(tall, 30)
    assert boxed.shape == (1, 3, 30, 30)
    inner = resize(tall, (30, 16))  # 31 * 30 / 60 rounds, half to even, to 16
    assert torch.equal(boxed[..., 7:23], inner)
    assert boxed[..., :7].abs().sum() == 0
    assert boxed[..., 23:].abs().sum() == 0
    assert letterbox(picture(4, 300), 16).shape == (1, 3, 16, 16)  # never less than one row

    padded = square_pad(tall)
    assert padded.shape == (1, 3, 60, 60)
    assert torch.equal(padded[..., 14:45], tall)
    assert padded[0, :, 0, 0].tolist() == pytest.approx([122 / 255, 116 / 255, 104 / 255])
    assert torch.allclose(normalise(square_pad(tall))[0, :, 0, 0], torch.zeros(3), atol=0.02)


@pytest.mark.parametrize("view", [crop_to, letterbox, lambda x, size: square_pad(x)])
def test_gradients_and_batches(view):
    images = torch.cat([picture(9, 12), picture(9, 12, seed=1)]).double()
    assert torch.autograd.gradcheck(
        lambda x: view(x, 6), images.requires_grad_(), eps=1e-6, atol=1e-8, fast_mode=True
    )
    whole = view(images, 6)
    assert torch.allclose(whole, torch.cat([view(one[None], 6) for one in images]), atol=1e-12)


def test_pictures_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r"images of 8x40 pixels are too small for hps.*14x14"):
        check_size(torch.zeros(1, 3, 8, 40), 14, "hps")
    check_size(torch.zeros(1, 3, 14, 14), 14, "hps")
