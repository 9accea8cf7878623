"""Measures against hacking: what rewards do not see, and training for them tends to change.

Diversity in a feature space that was not trained on (Vendi score, arXiv 2210.02410), the grid that
autoencoders and patches leave, and the tone of pictures. None says that a picture is good; each is
read as trained minus base, on the same prompts and noises.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from align.rewards.catalogue import sources
from align.rewards.identity import terms_of
from align.rewards.jpeg import jpeg_kilobytes
from align.rewards.resize import IMAGENET_MEAN, IMAGENET_STD, centre_crop, normalise, shortest_side
from align.rewards.weights import find, load_model, missing_files

Features = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
Profiles = Float[Tensor, "prompts 2 period"]
CUT = 4 / 255  # of a difference of neighbours: above it is content
NEAR = 2 / 255  # of 0 or 1
DRAWS = 1000  # of the bootstrap
SMALL = 1e-6
SCENES_TOWER = {"scenes-clip", "scenes-preference"}  # which see pictures by it
TONE = {
    "clipped": "share of values within 2/255 of black or full",
    "saturation": "mean saturation (HSV)",
    "colourfulness": "colourfulness (Hasler and Suesstrunk 2003), of values 0 to 255",
    "detail": "mean square of the Laplacian of the luma",
    "jpeg-kb": "size as a JPEG file, kB",
}


def vendi(features: Float[Tensor, "n d"]) -> float:
    """exp of the entropy of the eigenvalues of X X^T / n, rows of X at unit length: from 1, all
    alike, to n, all orthogonal."""
    rows = F.normalize(features.double(), dim=1)
    values = torch.linalg.eigvalsh(rows @ rows.T / len(rows))
    values = values[values > 0]
    return (-(values * values.log()).sum()).exp().item()


def tone(images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """The measures of `TONE` of each image."""
    red, green, blue = (255 * images).unbind(1)
    top, bottom = images.amax(1), images.amin(1)
    first, second = red - green, (red + green) / 2 - blue
    spread = (first.flatten(1).var(1) + second.flatten(1).var(1)).sqrt()
    middle = (first.flatten(1).mean(1).square() + second.flatten(1).mean(1).square()).sqrt()
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = F.conv2d(luma(images)[:, None], kernel)
    return {
        "clipped": ((images <= NEAR) | (images >= 1 - NEAR)).flatten(1).to(images).mean(1),
        "saturation": ((top - bottom) / top.clamp_min(SMALL)).flatten(1).mean(1),
        "colourfulness": spread + 0.3 * middle,
        "detail": edges.square().flatten(1).mean(1),
        "jpeg-kb": jpeg_kilobytes(images),
    }


def luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """Brightness as Rec. 601 weighs the colours."""
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


def grid_profiles(images: Float[Tensor, "b 3 h w"], period: int) -> Float[Tensor, "b 2 period"]:
    """How much neighbours differ, across columns and across rows, at each phase of a period.

    A difference counts up to 4/255, so that edges of content weigh little. Differences before the
    last whole period alone are taken, so that each phase has as many.
    """
    grey, profiles = luma(images), []
    for axis in (2, 1):
        lines = grey.diff(dim=axis).abs().clamp_max(CUT).mean(3 - axis)  # [b, side - 1]
        whole = lines.shape[1] // period * period
        profiles.append(lines[:, :whole].unflatten(1, (-1, period)).mean(1))
    return torch.stack(profiles, 1)


def grid(profiles: Float[Tensor, "b 2 period"]) -> float:
    """By how much the strongest phase of a set of pictures stands out from the median one, as a
    share of it; the larger of both axes. 0 is no grid."""
    weights = torch.full((1, len(profiles)), 1 / len(profiles), dtype=torch.float64)
    return _grids(weights, profiles).item()


def _grids(
    weights: Float[Tensor, "n b"], profiles: Float[Tensor, "b 2 period"]
) -> Float[Tensor, " n"]:
    """`grid` of pictures with each of these rows of weights."""
    phases = torch.einsum("nb,bap->nap", weights, profiles.double())
    middle = phases.median(2).values
    return ((phases.amax(2) - middle) / (middle + SMALL)).amax(1)


def grid_rise(before: Profiles, after: Profiles) -> tuple[float, float, float]:
    """By how much the grid is stronger after than before, and the 95 % interval by a bootstrap over
    prompts, which are the rows of both."""
    count, generator = len(before), torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (DRAWS, count), generator=generator)
    weights = torch.cat([torch.ones(1, count), F.one_hot(drawn, count).sum(1)]).double() / count
    rise, *draws = (_grids(weights, after) - _grids(weights, before)).tolist()
    low, high = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
    return rise, low, high


def periods(size: Sequence[int], units: Sequence[int]) -> list[int]:
    """At which periods to look in pictures of this size: those of the model, 32 and 64, as long as
    four fit in."""
    wanted = {*units, 32, 64}
    return sorted(period for period in wanted if 2 <= period <= min(size) // 4)


def measure(
    images: Sequence[Tensor] | Tensor, count: int, units: Sequence[int], features: Features | None
) -> dict[str, Any]:
    """The measures of `count` images [3, h, w] of each prompt, prompts one after the other, as
    plain values: `tone` by measure and prompt, the profiles of the `grid` by period, prompt and
    axis, and `vendi` by prompt where there are features."""
    found: dict[str, Any] = {"tone": {name: [] for name in TONE}, "grid": {}}
    for start in range(0, len(images), count):
        part = torch.stack(list(images[start : start + count])).float()
        for name, values in tone(part).items():
            found["tone"][name].append(values.mean().item())
        for period in periods(part.shape[-2:], units):
            profile = grid_profiles(part, period).mean(0).tolist()
            rounded = [[round(value, 9) for value in axis] for axis in profile]
            found["grid"].setdefault(str(period), []).append(rounded)
        if features is not None and count > 1:
            found.setdefault("vendi", []).append(vendi(features(part)))
    return found


def means(measured: dict[str, Any]) -> dict[str, float]:
    """What `measure` found, as one number each; the grid is that of the strongest period."""
    found = {name: _mean(values) for name, values in measured["tone"].items()}
    if measured["grid"]:
        found["grid"] = max(grid(torch.tensor(p)) for p in measured["grid"].values())
    if "vendi" in measured:
        found["vendi"] = _mean(measured["vendi"])
    return found


def grid_rises(
    before: dict[str, Any], after: dict[str, Any]
) -> dict[str, tuple[float, float, float]]:
    """`grid_rise` by period, of what `measure` found."""
    both = before["grid"].keys() & after["grid"].keys()
    return {
        period: grid_rise(torch.tensor(before["grid"][period]), torch.tensor(after["grid"][period]))
        for period in sorted(both, key=int)
    }


def strongest(rises: dict[str, tuple[float, float, float]]) -> tuple[str, tuple] | None:
    """The period whose grid has risen most, of those whose interval lies above 0; else of all."""
    sure = {period: rise for period, rise in rises.items() if rise[1] > 0}
    found = sure or rises
    return max(found.items(), key=lambda item: item[1][0]) if found else None


def untrained_features(
    trained: Sequence[str], device: Any, scenes: bool
) -> tuple[str, Features] | None:
    """Features for the Vendi score that are on this machine, and their name: of DINOv2, of CLIP, or
    for pictures of the world inside (`scenes`) of its CLIP; none that a reward of `trained`, terms
    as written, sees pictures by."""
    names = {term.partition(":")[0] for term in trained}
    used = {one.repo for term in trained for one in sources(*_apart(term))}
    for name, load in (("dinov2", dinov2), ("clip", _clip)):
        if sources(name)[0].repo not in used and not missing_files(sources(name)[0]):
            return name, load(device)
    if not scenes or names & SCENES_TOWER:
        return None
    return "scenes-clip", _scenes(device)


def _apart(term: str) -> tuple[str, str | None]:
    name, colon, argument = term.partition(":")
    return name, argument if colon else None


def dinov2(device: Any) -> Features:
    """The class token of DINOv2: shorter side to 256, the middle 224, as its processor does."""
    from transformers import Dinov2Model

    model = load_model(Dinov2Model, find(sources("dinov2")[0], "dinov2")).to(device or "cpu")
    return lambda images: dinov2_features(model, images)


@torch.no_grad()
def dinov2_features(model: Any, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """The class token after the last norm."""
    weights = next(model.parameters())
    pixels = centre_crop(shortest_side(images.to(weights), 256), 224)
    states = model(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state
    return states[:, 0].float().cpu()


def _clip(device: Any) -> Features:
    from align.rewards.clip import load

    tower = load(None, device).tower
    return lambda images: tower.images(images).float().cpu()


def _scenes(device: Any) -> Features:
    from align.rewards.scenes_clip import load

    tower = load(None, device).image_tower
    return lambda images: tower(images.to(device or "cpu")).float().cpu()


def trained_on(config: Any) -> list[str]:
    """The terms of a run's reward, if they can be read."""
    try:
        return terms_of(config.reward)
    except ValueError:
        return []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
