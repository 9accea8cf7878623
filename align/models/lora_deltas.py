"""Weight deltas in the forms that LoRA tools write, as two factors whose product they are.

LoRA with its convolutions' middle factor (LoCon), LoHa and LoKr after LyCORIS (Yeh et al. 2023,
arXiv 2309.14859; the layouts are those of its modules and of PEFT's), and plain differences. All of
them are exact: a Hadamard product of two products is the product of their row-wise and
column-wise Kronecker products, a Kronecker product of products the product of Kronecker products.
"""

import math

import torch
from torch import Tensor

Pieces = dict[str, Tensor]


def factors(
    pieces: Pieces, alpha: float | None, rank: int | None, rank_stabilized: bool
) -> tuple[Tensor, Tensor]:
    """(down [rank, in ...], up [out, rank ...]), the scale in `up`, of what a file says of a layer.

    `alpha` and `rank` count where the pieces say none. Raises KeyError naming a piece
    that is missing, ValueError where pieces do not go together.
    """
    pieces = {name: piece.float() for name, piece in pieces.items()}
    alpha = float(pieces["alpha"]) if "alpha" in pieces else alpha
    if "lora_down" in pieces or "lora_up" in pieces:
        pair, rank = _lora(pieces), len(pieces["lora_down"])
    elif any(name.startswith("hada_") for name in pieces):
        pair, rank = _loha(pieces), pieces["hada_w1_b"].shape[0]
    elif any(name.startswith("lokr_") for name in pieces):
        pair = _lokr(pieces)
        rank = next((len(pieces[b]) for b in ("lokr_w1_b", "lokr_w2_b") if b in pieces), rank)
    else:
        pair, rank = _whole(pieces["diff"]), None
    if alpha is None or rank is None:
        return pair
    return pair[0], pair[1] * (alpha / (math.sqrt(rank) if rank_stabilized else rank))


def _lora(pieces: Pieces) -> tuple[Tensor, Tensor]:
    down, up = pieces["lora_down"], pieces["lora_up"]
    if "lora_mid" not in pieces:
        return down, up
    return torch.einsum("rshw,si->rihw", pieces["lora_mid"], down.flatten(1)), up


def _loha(pieces: Pieces) -> tuple[Tensor, Tensor]:
    a1, b1, a2, b2 = (pieces[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "hada_t1" in pieces:
        return _whole(_tucker(pieces["hada_t1"], a1, b1) * _tucker(pieces["hada_t2"], a2, b2))
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return _shorter(down, up)


def _lokr(pieces: Pieces) -> tuple[Tensor, Tensor]:
    down1, up1 = _kronecker_part(pieces, "lokr_w1")
    down2, up2 = _kronecker_part(pieces, "lokr_w2")
    return _shorter(torch.kron(down1, down2), torch.kron(up1, up2))


def _kronecker_part(pieces: Pieces, name: str) -> tuple[Tensor, Tensor]:
    if name in pieces:
        down, up = _whole(pieces[name])
    elif "lokr_t2" in pieces and name == "lokr_w2":
        a, b = pieces["lokr_w2_a"], pieces["lokr_w2_b"]
        down, up = _whole(_tucker(pieces["lokr_t2"], a, b))
    else:
        down, up = pieces[f"{name}_b"], pieces[f"{name}_a"]
    return down.flatten(1), up


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[out, in, h, w] of a core [r, s, h, w] and the factors a [r, out] and b [s, in]."""
    return torch.einsum("rshw,ro,si->oihw", core, a, b)


def _whole(delta: Tensor) -> tuple[Tensor, Tensor]:
    """A delta as factors of which one is the identity."""
    if delta.ndim < 2:
        raise ValueError("it changes a layer without a matrix, such as a normalization")
    flat = delta.flatten(1)
    if flat.shape[0] <= flat.shape[1]:
        return delta, torch.eye(len(flat))
    return torch.eye(flat.shape[1]).view(-1, *delta.shape[1:]), flat


def _shorter(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, by one of its sides where that is less than the rank."""
    return (down, up) if len(down) <= min(len(up), down.shape[1]) else _whole(up @ down)
