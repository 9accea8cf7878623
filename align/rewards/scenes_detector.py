"""`scenes-detector`: finds the objects of a scenes picture and compares them with the prompt.

The network says for each of 16x16 places of a picture whether an object's centre is near, and of
which colour, shape, texture, offset, radius and depth it is. The six strongest local maxima of
presence are the candidates. With l_k the log-odds that candidate k is an object, the score is

    logsumexp_a [ sum_i (l_a(i) + facts of stated object i at a(i)) + sum relations ]
        - sum_k softplus(l_k)

over all injective assignments a of stated objects to candidates: the log-probability that the
picture shows exactly what the prompt states, if findings were independent. Facts are log-
probabilities: of colour and shape, of texture and size where stated, of every relation. A
candidate that nobody stated costs its own log-odds. Every fact is bounded below (`FLOOR`), so that
one that is hopeless has no say in the gradient and several wrong facts add up.

The rule is GenEval's (Ghosh et al. 2023), made soft; geometry as in docs/scenes.md.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from align.rewards.facts import Fact
from align.rewards.scenes_layers import (
    ResidualBlock,
    load_weights,
    prepare,
    read_config,
    refuse_argument,
)
from align.scenes.grammar import COLORS, RELATIONS_2D, SHAPES, SIZES, TEXTURES, parse

NAME = "scenes-detector"
CONFIG = {"widths": [32, 64, 96], "blocks": [2, 3, 1]}
CELL = 4  # px
CANDIDATES = 6
FLOOR = 0.01  # of a fact's probability
MOST_ODDS = 6.0  # of presence, either way
SIZE_BORDER = 12.0  # px of radius between small and large
FIELDS = (1, len(COLORS) + 1, len(SHAPES) + 1, len(TEXTURES), 2, 1, 1)
RELATIONS = (*RELATIONS_2D, "in front of", "behind")


@dataclass(frozen=True)
class Maps:
    """What the network says at each place [b, n]: logits, and geometry in pixels.

    `color` and `shape` have a last class "none of them"; `center` is (x, y) in the picture; of two
    overlapping objects the nearer one has the greater `depth`, in log-odds of being in front.
    """

    presence: Float[Tensor, "b n"]
    color: Float[Tensor, "b n colors"]
    shape: Float[Tensor, "b n shapes"]
    texture: Float[Tensor, "b n textures"]
    center: Float[Tensor, "b n 2"]
    radius: Float[Tensor, "b n"]
    depth: Float[Tensor, "b n"]

    def at(self, places: Int[Tensor, "b k"]) -> "Maps":
        """The same at some places of each picture."""

        def pick(x: Tensor) -> Tensor:
            index = places if x.ndim == 2 else places[..., None].expand(-1, -1, x.shape[-1])
            return x.gather(1, index)

        return Maps(*map(pick, vars(self).values()))


class ScenesDetector(nn.Module):
    """Convolutions to 16x16 places, a deeper branch at 8x8 added back, and a map a field."""

    def __init__(self, widths: list[int], blocks: list[int]):
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, a, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(a, a, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(a, b, 4, stride=2, padding=1),
            *(ResidualBlock(b) for _ in range(blocks[0])),
        )
        self.deep = nn.Sequential(
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            *(ResidualBlock(c) for _ in range(blocks[1])),
            nn.GroupNorm(8, c),
            nn.SiLU(),
            nn.Conv2d(c, b, 1),
        )
        self.head = nn.Sequential(
            *(ResidualBlock(b) for _ in range(blocks[2])),
            nn.GroupNorm(8, b),
            nn.SiLU(),
            nn.Conv2d(b, sum(FIELDS), 1),
        )
        nn.init.constant_(self.head[-1].bias[:1], -4.0)  # most places hold nothing

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> Maps:
        """The findings at each of the 256 places, row by row; images in [0, 1]."""
        x = self.stem(prepare(images, self.stem[0].weight))
        deep = F.interpolate(self.deep(x), x.shape[-2:], mode="bilinear", align_corners=False)
        out = self.head(x + deep)
        rows, columns = out.shape[-2:]
        out = out.flatten(2).transpose(1, 2).float()
        presence, color, shape, texture, offset, radius, depth = out.split(FIELDS, -1)
        centers = cell_centers(rows, columns, out.device)
        return Maps(
            presence.squeeze(-1), color, shape, texture,
            centers + offset, 12 + 4 * radius.squeeze(-1), depth.squeeze(-1),
        )  # fmt: skip

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """About log P(the picture shows exactly what its prompt states), <= 0; images in [0, 1].

        Raises:
            ValueError: a prompt outside the scenes grammar; names its first word that is.
        """
        found = candidates(self.maps(images))
        scores = found.presence.new_empty(len(prompts))
        for rows, stated in by_count(prompts, scores.device):
            scores = scores.index_put((rows,), log_probability(select(found, rows), stated))
        return scores

    def explain(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> list[list[Fact]]:
        """How probably each fact that a prompt states holds in its picture; raises as `forward`."""
        from align.rewards.scenes_facts import explain

        return explain(candidates(self.maps(images)), prompts)


def cell_centers(rows: int, columns: int, device=None) -> Float[Tensor, "n 2"]:
    """(x, y) in pixels of the middle of each place, row by row."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return CELL * (torch.stack([x, y], -1).flatten(0, 1) + 0.5)


def candidates(maps: Maps) -> Maps:
    """The `CANDIDATES` strongest local maxima (3x3) of presence in each picture."""
    side = round(maps.presence.shape[1] ** 0.5)
    grid = maps.presence.detach().unflatten(1, (side, side))
    peaks = F.max_pool2d(grid[:, None], 3, stride=1, padding=1)[:, 0] == grid
    order = torch.where(peaks, grid, grid - 1000).flatten(1)
    return maps.at(order.topk(CANDIDATES, dim=1).indices)


@dataclass(frozen=True)
class Stated:
    """The facts of prompts with equally many objects, -1 where nothing is said.

    `relation[b, i, j]` is an index into `RELATIONS` for what object i is to object j.
    """

    color: Int[Tensor, "b n"]
    shape: Int[Tensor, "b n"]
    texture: Int[Tensor, "b n"]
    size: Int[Tensor, "b n"]
    relation: Int[Tensor, "b n n"]


@lru_cache(maxsize=4096)
def read_prompt(prompt: str) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Rows (colour, shape, texture, size) a stated object, and the table of relations."""
    scene = parse(prompt)
    objects = tuple(
        (
            list(COLORS).index(o.color),
            SHAPES.index(o.shape),
            -1 if o.texture is None else TEXTURES.index(o.texture),
            -1 if o.size is None else SIZES.index(o.size),
        )
        for o in scene.objects
    )
    table = [[-1] * len(objects) for _ in objects]
    for relation in scene.relations:
        table[relation.first][relation.second] = RELATIONS.index(relation.kind)
    return objects, tuple(map(tuple, table))


def by_count(prompts: list[str], device=None) -> list[tuple[Int[Tensor, " rows"], Stated]]:
    """Which prompts state one object, two, ..., and what they state."""
    read = [read_prompt(prompt) for prompt in prompts]
    groups = []
    for count in sorted({len(objects) for objects, _ in read}):
        rows = [i for i, (objects, _) in enumerate(read) if len(objects) == count]
        objects = torch.tensor([read[i][0] for i in rows], device=device)
        relation = torch.tensor([read[i][1] for i in rows], device=device)
        groups.append((torch.tensor(rows, device=device), Stated(*objects.unbind(-1), relation)))
    return groups


def select(found: Maps, rows: Int[Tensor, " rows"]) -> Maps:
    """The findings of some pictures."""
    return Maps(*(x[rows] for x in vars(found).values()))


def floored(log_p: Tensor) -> Tensor:
    """log of a probability p that is FLOOR at least: of (1 - FLOOR) p + FLOOR."""
    return (FLOOR + (1 - FLOOR) * log_p.exp()).log()


def chosen(logits: Float[Tensor, "b k c"], stated: Int[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
    """Log-probability of each stated class at each candidate, 0 where nothing is stated."""
    log_p = logits.log_softmax(-1).transpose(1, 2)
    index = stated.clamp(min=0)[..., None].expand(-1, -1, log_p.shape[-1])
    return torch.where(stated[..., None] >= 0, log_p.gather(1, index), 0.0)


def object_facts(found: Maps, stated: Stated) -> dict[str, Float[Tensor, "b n k"]]:
    """Log-probability of what is said of stated object i at candidate k, by kind; 0 if unsaid."""
    large = (found.radius - SIZE_BORDER)[:, None] / 0.7
    size = torch.where(stated.size[..., None] == 0, F.logsigmoid(-large), F.logsigmoid(large))
    return {
        "color": floored(chosen(found.color, stated.color)),
        "shape": floored(chosen(found.shape, stated.shape)),
        "texture": floored(chosen(found.texture, stated.texture)),
        "size": floored(torch.where(stated.size[..., None] >= 0, size, 0.0)),
    }


def relation_facts(found: Maps) -> Float[Tensor, "b k k r"]:
    """Log-probability that candidate k is in each of `RELATIONS` to candidate m."""
    x, y = found.center.unbind(-1)
    # how far m lies to the right of k, and below it
    right, down = x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]

    def holds(along: Tensor, across: Tensor) -> Tensor:
        return F.logsigmoid(along - 5.5) + F.logsigmoid(along - across.abs() + 0.5)

    front = found.depth[:, :, None] - found.depth[:, None, :]
    distance = (right.square() + down.square() + 1e-6).sqrt()
    overlap = F.logsigmoid(found.radius[:, :, None] + found.radius[:, None, :] - distance - 2)
    kinds = [
        holds(right, down), holds(-right, down), holds(down, right), holds(-down, right),
        F.logsigmoid(front) + overlap, F.logsigmoid(-front) + overlap,
    ]  # fmt: skip
    return floored(torch.stack(kinds, -1))


def odds(found: Maps) -> Float[Tensor, "b k"]:
    """Log-odds of each candidate, bounded smoothly by `MOST_ODDS`."""
    return MOST_ODDS * (found.presence / MOST_ODDS).tanh()


@lru_cache
def assignments(count: int, device: torch.device) -> Int[Tensor, "a n"]:
    """All injective ways to give `count` stated objects to the candidates.

    Raises ValueError where there are more objects than candidates.
    """
    if count > CANDIDATES:
        raise ValueError(
            f"the prompt states {count} objects; {NAME} compares at most {CANDIDATES} of a picture"
        )
    return torch.tensor(list(itertools.permutations(range(CANDIDATES), count)), device=device)


def assignment_scores(found: Maps, stated: Stated) -> Float[Tensor, "b a"]:
    """The score of the module's docstring for each of `assignments`."""
    count, ways = stated.color.shape[1], assignments(stated.color.shape[1], stated.color.device)
    present = odds(found)
    unary = present[:, None] + torch.stack(list(object_facts(found, stated).values())).sum(0)
    total = unary.gather(2, ways.T[None].expand(len(unary), -1, -1)).sum(1)
    if (stated.relation >= 0).any():
        kinds = relation_facts(found)
        for i, j in itertools.permutations(range(count), 2):
            said = stated.relation[:, i, j]
            index = said.clamp(min=0)[:, None, None, None].expand(-1, CANDIDATES, CANDIDATES, 1)
            pairs = kinds.gather(3, index)[..., 0]
            total = total + torch.where(said[:, None] >= 0, pairs[:, ways[:, i], ways[:, j]], 0.0)
    return total - F.softplus(present).sum(1, keepdim=True)


def log_probability(found: Maps, stated: Stated) -> Float[Tensor, " b"]:
    """The score of each picture, summed over assignments."""
    return assignment_scores(found, stated).logsumexp(1)


def load(argument: str | None, device) -> ScenesDetector:
    """The reward `scenes-detector`, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    refuse_argument(NAME, argument)
    model = ScenesDetector(**read_config(NAME)["model"])
    load_weights(model, NAME)
    return model.to(device or "cpu")
