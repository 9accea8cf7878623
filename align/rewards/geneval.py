"""`geneval`: GenEval's rule on its own detector, in transformers (arXiv 2310.11513).

A Mask2Former finds COCO's objects, a CLIP ViT-L/14 names their colours, a rule decides: 1 or 0.

    geneval         the original's decision; `score` of its table is the mean over tags
    geneval:strict  exact numbers everywhere
    geneval:dense   flow_grpo's training reward: the share of what was asked for, at most 1
    geneval:soft    a sum of log-probabilities with a gradient (ours), at most 0

What a prompt asks for is in its metadata (`tag`, `include`, `exclude`), else it is read from the
prompt by GenEval's six templates. With mmdet's weights of the original what differs are the order
of sums and halves of its CLIP on a GPU. `model=OWNER/NAME` takes another Mask2Former: the rule is
the same, the detector is not, and its figures are GenEval-like.

Soft, with p(c|q) of class c and query q, s = p(c|q) times the mean of sigmoid(m) where m > 0,
t the rule's threshold, found = sum_q sigmoid((s - t) / 0.05), over the best 16 queries:

    there     log sigmoid(logsumexp_q log-odds), so that nothing is flat where all is absent
    number    log sigmoid((found - n + 0.5) / 0.25); not more: the same of (n - 0.5 - found)
    colour    log softmax of 100 cos over ten colours, the mask blended by sigmoid(m)
    position  log sigmoid((d - 0.5) / 0.1), centres weighted by sigmoid(m)

the mean over these. Boxes, sizes and m > 0 have no gradient.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from align.config.checks import one_of
from align.language.geneval import COLOURS, class_names, parse_geneval
from align.rewards.arguments import read_argument
from align.rewards.catalogue import CLIP_L, sources
from align.rewards.clip_tower import ClipTower, load_clip, unit
from align.rewards.geneval_rule import NEAR, grade, judge, judge_strictly
from align.rewards.mask2former import (
    MOST,
    Mask2Former,
    Seen,
    Thing,
    box_of,
    find_objects,
    load_mmdet,
    mask_scores,
)
from align.rewards.resize import crop_to
from align.rewards.slopes import by_picture, to_bytes
from align.rewards.weights import find, load_model, local_path, model_type, shared

NAME = "geneval"
MODES = ("strict", "dense", "soft")
THRESHOLD, COUNTING = 0.3, 0.9
GREY = 0.6  # 153 of 255, around an object whose colour is asked for
SURE, WHOLE, ASIDE = 0.05, 0.25, 0.1  # how soft scores, numbers and positions are
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


class Colours(nn.Module):
    """100 cos of an object's picture with ten colours."""

    def __init__(self, tower: ClipTower):
        super().__init__()
        self.tower = tower
        self.known: dict[tuple, Tensor] = {}

    def forward(
        self,
        picture: Float[Tensor, "1 3 h w"],
        shown: Float[Tensor, "h w"],
        box: tuple[float, float, float, float],
        name: str,
        *,
        in_bytes: bool = False,
    ) -> Float[Tensor, "10"]:
        """`shown`: how much of each pixel is seen, 0 to 1; the rest is grey."""
        x0, y0, x1, y1 = (round(side) for side in box)
        blended = picture * shown + GREY * (1 - shown)
        size = self.tower.model.config.vision_config.image_size
        crop = crop_to(blended[..., y0:y1, x0:x1], size, half_to_even=True)
        crop = to_bytes(crop) if in_bytes else crop
        return 100 * (self.tower.images(crop) @ self.words(name).T)[0]

    @torch.no_grad()
    def words(self, name: str) -> Float[Tensor, "10 d"]:
        """The feature of each colour of a class, made once."""
        scale = self.tower.model.logit_scale
        key = (name, scale.device, scale.dtype)
        if key not in self.known:
            texts = [text.format(c, name) for c in COLOURS for text in TEMPLATES]
            features = self.tower.prompts(texts).unflatten(0, (len(COLOURS), -1))
            self.known[key] = unit(features.mean(1))
        return self.known[key]


class GenEval(nn.Module):
    """See the module's docstring."""

    wants_metadata = True

    def __init__(self, detector: Mask2Former, tower: ClipTower, mode: str | None = None):
        super().__init__()
        self.detector = detector
        self.colours = Colours(tower)
        self.mode = mode
        self.differentiable = mode == "soft"
        self.classes = class_names()

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: list[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Float[Tensor, " b"]:
        """Scores. Raises ValueError for a prompt that asks for nothing that the rule knows."""
        rows = metadata if metadata is not None else [{} for _ in prompts]
        asked = [self.asked(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        weight = self.detector.model.class_predictor.weight
        images = images.to(weight)
        if self.mode == "soft":
            return by_picture(lambda one, i: self.soft(one, asked[i]).mean()[None], images)
        with torch.no_grad():
            rounded = to_bytes(images)
            values = [self.hard(rounded[i : i + 1], one) for i, one in enumerate(asked)]
        return images.new_tensor(values)

    def asked(self, prompt: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a prompt asks for. Raises ValueError for a class or colour that is not known."""
        if not row.get("include"):
            return parse_geneval(prompt)
        for clause in [*row["include"], *(row.get("exclude") or ())]:
            if clause["class"] not in self.classes:
                raise ValueError(
                    f"{prompt!r} asks for {clause['class']!r}; the detector of geneval knows "
                    f"COCO's classes; {one_of(clause['class'], self.classes)}"
                )
            if clause.get("color", COLOURS[0]) not in COLOURS:
                raise ValueError(f"{prompt!r}: {one_of(clause['color'], COLOURS)}")
        return dict(row)

    def hard(self, picture: Float[Tensor, "1 3 h w"], asked: Mapping[str, Any]) -> float:
        """The rule's decision on a picture of bytes, or its grade."""
        found = find_objects(self.detector(picture, in_bytes=True), threshold(asked))
        objects = {self.classes[index]: things for index, things in found.items()}

        def colours(things: Sequence[Thing], name: str) -> list[str]:
            named = []
            for thing in things:
                assert thing.mask is not None  # the detector gives one
                shown = thing.mask.to(picture)
                cosines = self.colours(picture, shown, thing.box, name, in_bytes=True)
                named.append(COLOURS[int(cosines.argmax())])
            return named

        if self.mode == "dense":
            return grade(objects, asked, colours)
        decide = judge_strictly if self.mode == "strict" else judge
        return float(not decide(objects, asked, colours))

    def soft(
        self, picture: Float[Tensor, "1 3 h w"], asked: Mapping[str, Any], warmth: float = 1.0
    ) -> Float[Tensor, " e"]:
        """The log-probability of each entry; as `warmth` shrinks it becomes the rule."""
        seen, entries = self.detector(picture), []
        groups: list[Group] = []
        for clause in asked["include"]:
            group = Group(seen, self.classes.index(clause["class"]), threshold(asked), warmth)
            taken = group.surest(clause["count"])
            entries += [
                F.logsigmoid(group.odds.logsumexp(0) / warmth),
                F.logsigmoid((group.number - clause["count"] + 0.5) / (WHOLE * warmth)),
            ]
            if "color" in clause:
                index, name = COLOURS.index(clause["color"]), clause["class"]
                logs = [
                    self.colours(picture, group.masks[i].sigmoid(), group.box(i), name)
                    for i in taken
                ]
                entries.append((torch.stack(logs) / warmth).log_softmax(-1)[:, index].amin())
            if "position" in clause:
                relation, earlier = clause["position"]
                other, aim = groups[earlier], asked["include"][earlier]["count"]
                aside = [
                    group.aside(i, other, j, relation) for i in taken for j in other.surest(aim)
                ]
                d = torch.stack(aside).amin()
                entries.append(F.logsigmoid((d - 0.5) / (ASIDE * warmth)))
            groups.append(group)
        for clause in asked.get("exclude") or ():
            group = Group(seen, self.classes.index(clause["class"]), threshold(asked), warmth)
            entries.append(F.logsigmoid((clause["count"] - 0.5 - group.number) / (WHOLE * warmth)))
        return torch.stack(entries)


class Group:
    """The best queries of a class in a picture.

    Attributes:
        odds: log-odds of the class, of every query.
        masks: logits at the picture's size, of the best queries.
        scores: p times the mask's score, of these.
        number: how many of them pass the threshold, softly.
    """

    def __init__(self, seen: Seen, index: int, threshold: float, warmth: float):
        others = torch.arange(seen.logits.shape[-1], device=seen.logits.device) != index
        self.odds = seen.logits[:, index] - seen.logits[:, others].logsumexp(-1)
        p = self.odds.sigmoid()
        best = p.detach().topk(min(MOST, len(p))).indices
        self.masks = seen.at_size(best)
        self.scores = p[best] * mask_scores(self.masks)
        self.number = ((self.scores - threshold) / (SURE * warmth)).sigmoid().sum()

    def surest(self, count: int) -> list[int]:
        """Indices of the best so many."""
        return self.scores.detach().topk(min(count, len(self.scores))).indices.tolist()

    def box(self, index: int) -> tuple[float, float, float, float]:
        """The box of a mask, of the whole picture where the mask is empty."""
        height, width = self.masks.shape[-2:]
        box = box_of(self.masks[index].detach() > 0)
        return box if box[2] else (0.0, 0.0, float(width), float(height))

    def centre(self, index: int) -> tuple[Tensor, Tensor]:
        """x and y of the middle of a mask, in pixels."""
        weight = self.masks[index].sigmoid()
        weight = weight / weight.sum()
        y, x = (torch.arange(n).to(weight) + 0.5 for n in weight.shape)
        return (weight.sum(0) * x).sum(), (weight.sum(1) * y).sum()

    def aside(self, index: int, other: "Group", there: int, relation: str) -> Tensor:
        """How far a thing lies in a direction from another one, as the rule measures it."""
        mine, theirs = self.box(index), other.box(there)
        offset = [a - b for a, b in zip(self.centre(index), other.centre(there), strict=True)]
        length = torch.stack(offset).square().sum().clamp_min(1e-12).sqrt()
        axis = 0 if relation in ("left of", "right of") else 1
        size = sum(box[axis + 2] - box[axis] for box in (mine, theirs))
        apart = (offset[axis].abs() - NEAR * size).clamp_min(0) * offset[axis].sign()
        return apart / length * (-1 if relation in ("left of", "above") else 1)


def threshold(asked: Mapping[str, Any]) -> float:
    """From which score on an object is there."""
    counting = asked.get("tag") == "counting" or ("tag" not in asked and asked.get("exclude"))
    return COUNTING if counting else THRESHOLD


def load(argument: str | None, device) -> GenEval:
    """The reward and judge `geneval`, frozen.

    `argument`: `strict`, `dense` or `soft`, and `model=` a checkpoint of mmdet, a folder or Hub id
    of a Mask2Former in transformers' layout. Warns of weights that are not the original's.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: an argument that cannot be read, damaged weights, another number of classes.
    """
    given = read_argument(NAME, argument, MODES)
    path = local_path(given.model)
    if path is None and given.model is not None and given.model.count("/") != 1:
        raise ValueError(f"{given.term}: model is no Hub id OWNER/NAME, folder or file")
    term = NAME if path is not None or given.model is None else f"{NAME}:model={given.model}"
    own, folder = sources(NAME)[0], path if path is not None and path.is_dir() else None
    source = sources(NAME, argument)[0] if path is None else own
    if path is not None and (path.is_file() or (path / "config.json").is_file()):
        place = path
    else:
        place = find(source, term, folder)
        place = place if source.model else place / own.files[0]
    model = shared((NAME, place, device), lambda: _load_detector(place))
    clip = find(CLIP_L, term)
    tower = ClipTower(*shared(("clip", clip, device), lambda: load_clip(clip)), NAME)
    return GenEval(Mask2Former(model), tower, given.mode).to(device or "cpu")


def _load_detector(place: Path) -> Mask2FormerForUniversalSegmentation:
    if place.is_file():
        model = load_mmdet(place)
    else:
        kind = model_type(place)
        if kind != "mask2former":
            raise ValueError(f"{place} is a {kind}; geneval takes a mask2former")
        model = load_model(Mask2FormerForUniversalSegmentation, place)
        warnings.warn(
            f"geneval by {place.name} is GenEval-like: another training of the detector, whose "
            "figures do not belong into one table with published ones",
            stacklevel=2,
        )
    classes = model.class_predictor.out_features - 1
    if classes != len(class_names()):
        raise ValueError(f"{place} knows {classes} classes; geneval needs COCO's 80")
    return model
