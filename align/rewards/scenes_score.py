"""The score of `scenes-detector`: what it found in a picture against what the prompt states.

The six strongest local maxima of presence are the
candidates. With p_k the probability that candidate k is an object, the score is

    log sum_a exp [ sum_i log p_a(i) + facts of stated object i at a(i) + sum relations
                    + EXTRA sum_{k not in a} log (1 - p_k) ]  +  FLAW sum_f log (1 - p_f)

over all injective assignments a of stated objects to candidates, those that only exchange alike
objects counting once, and over the likeliest flaws f.
With EXTRA = FLAW = 1 it is the log-probability that the picture shows exactly what the prompt
states; smaller ones order pictures better by how much of the prompt they show. Facts are
log-probabilities: of colour and shape, of texture and size where stated, of every relation, each
bounded below (`FLOOR`), so that one that is hopeless has no say in the gradient.

The rule is GenEval's (Ghosh et al. 2023), made soft; geometry as in docs/scenes.md.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from align.scenes.grammar import COLORS, RELATIONS_2D, SHAPES, SIZES, TEXTURES, parse

CELL = 4  # px
CANDIDATES = 6
FLOOR = 0.003  # of a fact's probability
EXTRA, FLAW = 0.45, 0.6  # see above; chosen on held-out half a
MOST_ODDS = 6.0  # of presence, either way
SIZE_BORDER = 12.0  # px of radius between small and large
FLAWS = 4  # that count at most
FIELDS = (1, len(COLORS) + 1, len(SHAPES) + 1, len(TEXTURES), 2, 1, 1, 1)
RELATIONS = (*RELATIONS_2D, "in front of", "behind")


@dataclass(frozen=True)
class Maps:
    """What the network says at each place [b, n]: logits, and geometry in pixels.

    `color` and `shape` have a last class "none of them"; `center` is (x, y) in the picture; of two
    overlapping objects the nearer one has the greater `depth`, in log-odds of being in front.
    `flaw` is a patch that belongs to no object: a stain, or another colour within an object.
    """

    presence: Float[Tensor, "b n"]
    color: Float[Tensor, "b n colors"]
    shape: Float[Tensor, "b n shapes"]
    texture: Float[Tensor, "b n textures"]
    center: Float[Tensor, "b n 2"]
    radius: Float[Tensor, "b n"]
    depth: Float[Tensor, "b n"]
    flaw: Float[Tensor, "b n"]

    def at(self, places: Int[Tensor, "b k"]) -> "Maps":
        """The same at some places of each picture."""

        def pick(x: Tensor) -> Tensor:
            index = places if x.ndim == 2 else places[..., None].expand(-1, -1, x.shape[-1])
            return x.gather(1, index)

        return Maps(*map(pick, vars(self).values()))


def score(maps: Maps, prompts: list[str]) -> Float[Tensor, " b"]:
    """How well each picture's findings fit its prompt; see the module's docstring."""
    found, scores = candidates(maps), FLAW * flawless(maps)
    for rows, stated in by_count(prompts, scores.device):
        scores = scores.index_add(0, rows, log_probability(select(found, rows), stated))
    return scores


def cell_centers(rows: int, columns: int, device=None) -> Float[Tensor, "n 2"]:
    """(x, y) in pixels of the middle of each place, row by row."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return CELL * (torch.stack([x, y], -1).flatten(0, 1) + 0.5)


def peaks(logits: Float[Tensor, "b n"], count: int) -> Int[Tensor, "b k"]:
    """The places of the `count` strongest local maxima (3x3) of each picture."""
    side = round(logits.shape[1] ** 0.5)
    grid = logits.detach().unflatten(1, (side, side))
    highest = F.max_pool2d(grid[:, None], 3, stride=1, padding=1)[:, 0] == grid
    return torch.where(highest, grid, grid - 1000).flatten(1).topk(count, dim=1).indices


def candidates(maps: Maps) -> Maps:
    """What stands at the `CANDIDATES` likeliest places of objects in each picture."""
    return maps.at(peaks(maps.presence, CANDIDATES))


def flawless(maps: Maps) -> Float[Tensor, " b"]:
    """Log-probability that none of the `FLAWS` likeliest flaws of each picture is one."""
    return F.logsigmoid(-bounded(maps.flaw.gather(1, peaks(maps.flaw, FLAWS)))).sum(1)


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
        color, shape, texture, size = objects.unbind(-1)
        stated = Stated(color, shape, texture, size, relation)
        groups.append((torch.tensor(rows, device=device), stated))
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


def bounded(logits: Tensor) -> Tensor:
    """Log-odds kept smoothly within `MOST_ODDS`, so that nothing is surer than that."""
    return MOST_ODDS * (logits / MOST_ODDS).tanh()


@lru_cache
def assignments(count: int, device: torch.device) -> Int[Tensor, "a n"]:
    """All injective ways to give `count` stated objects to the candidates.

    Raises ValueError where there are more objects than candidates.
    """
    if count > CANDIDATES:
        raise ValueError(
            f"the prompt states {count} objects; scenes-detector compares at most {CANDIDATES} "
            "of a picture"
        )
    return torch.tensor(list(itertools.permutations(range(CANDIDATES), count)), device=device)


def assignment_scores(found: Maps, stated: Stated) -> Float[Tensor, "b a"]:
    """The score of each picture but for its flaws, by each of `assignments` alone."""
    count, ways = stated.color.shape[1], assignments(stated.color.shape[1], stated.color.device)
    given = ways.T[None].expand(len(stated.color), -1, -1)
    logits = bounded(found.presence)
    absent = EXTRA * F.logsigmoid(-logits)
    # what an object at a candidate adds, beyond the candidate being nothing that was stated
    adds = F.logsigmoid(logits) - absent
    unary = adds[:, None] + torch.stack(list(object_facts(found, stated).values())).sum(0)
    total = unary.gather(2, given).sum(1) + absent.sum(1, keepdim=True)
    if (stated.relation >= 0).any():
        table = relation_facts(found)
        for i, j in itertools.permutations(range(count), 2):
            kind = stated.relation[:, i, j]
            index = kind.clamp(min=0)[:, None, None, None].expand(-1, CANDIDATES, CANDIDATES, 1)
            pairs = table.gather(3, index)[..., 0][:, ways[:, i], ways[:, j]]
            total = total + torch.where(kind[:, None] >= 0, pairs, 0.0)
    return total


def log_probability(found: Maps, stated: Stated) -> Float[Tensor, " b"]:
    """The score of each picture but for its flaws, over all assignments."""
    return assignment_scores(found, stated).logsumexp(1) - log_exchanges(stated)


def log_exchanges(stated: Stated) -> Float[Tensor, " b"]:
    """log of the ways to exchange the objects of prompts that count alike ones ("three red
    circles"), each of which gives the same facts; 0 for other prompts."""
    rows = torch.stack([stated.color, stated.shape, stated.texture, stated.size], -1)
    alike = (rows == rows[:, :1]).all(-1).all(1) & (stated.relation < 0).all(-1).all(1)
    return torch.where(alike, math.lgamma(rows.shape[1] + 1), 0.0)
