"""Train the AutoencoderKL of `embedded/scenes`: 64x64 pictures to 4x16x16 latents.

    python scripts/train_embedded/vae.py --minutes 28
    python scripts/train_embedded/vae.py --minutes 12 --decoder-only --seed 1

The second sharpens the shipped decoder and leaves the latents, which the denoiser has learned, as
they are. L1 + L2 reconstruction and a small KL term on fresh renders of seen combinations.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from loop import LoopConfig, train

from align.precision import autocast
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import CATEGORIES
from align.scenes.render import layout, render

ROOT = Path(__file__).parents[2]
OUT = ROOT / "align/embedded/scenes/vae"
KL_WEIGHT = 1e-3


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def shipped_vae() -> AutoencoderKL:
    """The shipped weights with everything before the latents frozen."""
    vae = AutoencoderKL.from_pretrained(OUT)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def pictures(seed: int, step: int, count: int) -> torch.Tensor:
    """Random true pictures, float (count, 3, 64, 64) in [-1, 1]."""
    rng = random.Random(f"vae-{seed}-{step}")
    # textures, overlaps and crowds are the hard part: draw their categories twice as often
    categories = (*CATEGORIES, "texture", "3d_spatial", "3d_spatial", "complex", "size")
    images = [
        render(layout(random_stated_scene(rng.choice(categories), rng), rng)) for _ in range(count)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def latent_std(vae: AutoencoderKL, seed: int) -> float:
    latents = vae.encode(pictures(seed, -1, 256)).latent_dist.mean
    return float(latents.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=28)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="default: work/vae, work/vae-decoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = (shipped_vae() if args.decoder_only else make_vae()).to(args.device)
    work = args.work or ROOT / ("work/vae-decoder" if args.decoder_only else "work/vae")
    config = LoopConfig(
        work, minutes=args.minutes, learning_rate=args.learning_rate, threads=args.threads,
        seed=args.seed,
    )  # fmt: skip

    def loss_fn(step: int):
        x = pictures(args.seed, step, args.batch_size).to(args.device)
        with autocast(args.device):
            with torch.set_grad_enabled(not args.decoder_only):
                posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        error = y.float() - x
        l2 = error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + l2 + KL_WEIGHT * kl
        return loss, {"mse": float(l2.detach()), "kl": float(kl.detach())}

    def save(ema: AutoencoderKL, step: int) -> None:
        if not args.decoder_only:
            ema.register_to_config(scaling_factor=round(1 / latent_std(ema, args.seed), 4))
        ema.to(torch.float16).save_pretrained(OUT)

    train(vae, loss_fn, config, on_checkpoint=save)


if __name__ == "__main__":
    main()
