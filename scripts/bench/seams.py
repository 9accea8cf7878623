"""What tiled decoding changes of a reward and of its gradient, on Stable Diffusion 1.5's decoder.

    python scripts/bench/seams.py                          # 512 pixels, tiles of 256, overlap 1/4
    python scripts/bench/seams.py --overlaps 0.25 0.5      # more of each tile shared
    python scripts/bench/seams.py --width 64               # half the channels
    python scripts/bench/seams.py --memory                 # on shapes alone: what tiles save

Weights are random (seed 0), latents unit noise. The reward is a weighted mean of squared pixels,
its gradient by the latents. A cell of 8 pixels counts as at a seam where two tiles are blended.
"""

import argparse
import json
import time

import torch
from architectures import vae

SCALE = 0.18215


def reward_of(pixels: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(0.5, 1.5, pixels.shape[-1])
    return (pixels.clamp(-1, 1).square() * weights).mean()


def decoded(model, latents: torch.Tensor) -> dict:
    latents = latents.detach().requires_grad_()
    pixels = model.decode(latents / SCALE, return_dict=False)[0]
    reward = reward_of(pixels)
    (gradient,) = torch.autograd.grad(reward, latents)
    return {"pixels": pixels.detach(), "reward": reward.item(), "gradient": gradient}


def seams(cells: int, tile: int, overlap: float) -> torch.Tensor:
    """(cells, cells), True where tiles are blended."""
    step, line = int(tile * (1 - overlap)), torch.zeros(cells, dtype=torch.bool)
    for start in range(step, cells, step):
        line[start : start + tile - step] = True
    return line[:, None] | line[None]


def compare(whole: dict, tiled: dict, where: torch.Tensor) -> dict:
    gap = (tiled["gradient"] - whole["gradient"]).square().sum((0, 1))
    norm = whole["gradient"].square().sum((0, 1))
    cosine = torch.nn.functional.cosine_similarity(
        tiled["gradient"].flatten(), whole["gradient"].flatten(), dim=0
    )
    return {
        "reward, relative": tiled["reward"] / whole["reward"] - 1,
        "pixels, mean difference": (tiled["pixels"] - whole["pixels"]).abs().mean().item(),
        "gradient, at seams": (gap[where].sum() / norm[where].sum()).sqrt().item(),
        "gradient, elsewhere": (gap[~where].sum() / norm[~where].sum()).sqrt().item(),
        "gradient, cosine": cosine.item(),
    }


def memory(size: int) -> None:
    """Peaks of decoding with gradient, blocks recomputed, whole and in the default tiles."""
    from align.alignprop.footprint import footprint
    from align.alignprop.frozen import recompute_blocks

    with torch.device("meta"):
        model = vae(sample_size=512).to(torch.bfloat16).eval().requires_grad_(False)
        latents = torch.empty(1, 4, size // 8, size // 8, dtype=torch.bfloat16, requires_grad=True)
    for blocks in (False, True):
        recompute_blocks(model, blocks)
        for tiles in (False, True):
            model.use_tiling = tiles
            peak = footprint(lambda: model.decode(latents, return_dict=False)[0]).peak
            print(f"{size}: recomputed {blocks}, tiles {tiles}: {peak / 2**30:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.25])
    parser.add_argument("--width", type=int, default=128, help="channels of the first block")
    parser.add_argument("--memory", action="store_true", help="on shapes alone")
    args = parser.parse_args()
    if args.memory:
        memory(args.size)
        return
    torch.manual_seed(0)
    model = vae(width=args.width, sample_size=512).eval().requires_grad_(False)
    cells, tile, began = args.size // 8, args.tile // 8, time.monotonic()
    latents = torch.randn(1, 4, cells, cells)
    whole = decoded(model, latents)
    print(f"whole: {time.monotonic() - began:.0f} s", flush=True)
    for overlap in args.overlaps:
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_latent_min_size = args.tile, tile
        model.tile_overlap_factor = overlap
        found = compare(whole, decoded(model, latents), seams(cells, tile, overlap))
        print(json.dumps({"overlap": overlap} | found), flush=True)


if __name__ == "__main__":
    main()
