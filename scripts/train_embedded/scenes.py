"""Train the denoiser and the text encoder of `embedded/scenes`, jointly.

    python scripts/train_embedded/scenes.py --minutes 60                       # one process
    torchrun --nproc-per-node 2 scripts/train_embedded/scenes.py --minutes 60  # faster on 2 cores

Needs the tokenizer and the autoencoder (`tokenizer.py`, `vae.py`). The text encoder starts from
the contrastive one of `scenes-clip` (`clip.py`) where that exists; `--continue` starts both parts
from the shipped weights. v-prediction, zero terminal SNR, one caption in ten dropped for guidance.
"""

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from loop import LoopConfig, rank, train
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from align.models.precision import autocast
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import CATEGORIES, Scene, describe
from align.scenes.render import layout, render

ROOT = Path(__file__).parents[2]
OUT = ROOT / "align/embedded/scenes"
CLIP_TEXT = ROOT / "align/embedded/rewards/scenes-clip/text_encoder"
WIDTH = 192


class TextToLatents(nn.Module):
    """Both trained parts under one roof, so that one optimizer and one EMA hold them."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH,
                num_hidden_layers=4, num_attention_heads=4, projection_dim=WIDTH,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        self.unet = UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(48, 96, 160), layers_per_block=1, cross_attention_dim=WIDTH,
            attention_head_dim=4, norm_num_groups=16, time_embedding_dim=160,
        )  # fmt: skip


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        steps_offset=1,  # without effect on trailing timesteps; pipelines warn about 0
    )  # fmt: skip


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, seed: int, count: int) -> tuple[torch.Tensor, list[Scene]]:
    """Latents (count, 4, 16, 16), scaled to unit variance, and what their captions may state."""
    rng = random.Random(f"scenes-pool-{seed}")
    device = vae.device
    said, latents = [], []
    for start in range(0, count, 100):
        batch = [
            random_stated_scene(CATEGORIES[i % len(CATEGORIES)], rng)
            for i in range(start, min(start + 100, count))
        ]
        pictures = np.stack([render(layout(scene, rng)) for scene in batch])
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        with autocast(device.type):
            mean = vae.encode(x).latent_dist.mean
        latents.append((mean.float() * vae.config.scaling_factor).cpu())
        said += batch
    return torch.cat(latents), said


def draw_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """Mostly the middle of the noise range, where shapes are decided (logit-normal, as in Stable
    Diffusion 3, arXiv 2403.03206, section 3.1), and one in five from all of it."""
    middle = torch.sigmoid(torch.randn(count, generator=generator)) * 1000
    anywhere = torch.rand(count, generator=generator) * 1000
    choice = torch.rand(count, generator=generator) < 0.2
    return torch.where(choice, anywhere, middle).long()


def save_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """As transformers 4 and 5 and plain diffusers all read it, stored as fp16, used as fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "text_model."
    weights = {
        prefix + k.removeprefix(prefix): v.half().contiguous()
        for k, v in text_encoder.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    config = {
        **text_encoder.config.to_diff_dict(),
        "architectures": ["CLIPTextModel"],
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_pipeline(model: TextToLatents, scheduler: DDIMScheduler) -> None:
    """Write everything but the autoencoder and tokenizer, which have their own scripts."""
    save_text_encoder(model.text_encoder, OUT / "text_encoder")
    model.unet.to(torch.float16).save_pretrained(OUT / "unet")
    scheduler.save_pretrained(OUT / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.31.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (OUT / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_model(tokenizer: CLIPTokenizer, continued: bool) -> TextToLatents:
    model = TextToLatents(tokenizer)
    text_folder = OUT / "text_encoder" if continued else CLIP_TEXT
    if text_folder.exists():
        weights = CLIPTextModel.from_pretrained(text_folder, dtype=torch.float32).state_dict()
        model.text_encoder.load_state_dict(weights)
    if continued:
        model.unet.load_state_dict(UNet2DConditionModel.from_pretrained(OUT / "unet").state_dict())
    if not torch.cuda.is_available():
        # PyTorch's fused attention is slow backwards on the CPU: a third of a whole step
        model.unet.set_attn_processor(AttnProcessor())
        model.text_encoder.set_attn_implementation("eager")
    return model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
    parser.add_argument("--pool", type=int, default=40_000, help="pictures encoded per process")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--text-learning-rate", type=float, default=3e-4)
    parser.add_argument("--decay-from", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="continued", action="store_true")
    parser.add_argument("--work", type=Path, default=ROOT / "work/scenes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    tokenizer = CLIPTokenizer.from_pretrained(OUT / "tokenizer")
    vae = AutoencoderKL.from_pretrained(OUT / "vae").to(args.device).eval()
    model = make_model(tokenizer, args.continued).to(args.device).train()
    scheduler = make_scheduler()
    alphas = scheduler.alphas_cumprod.to(args.device)
    stream = f"{args.seed}-{rank()}"
    pool, said = encode_pool(vae, stream, args.pool)
    print(f"pool of {len(pool)} latents, std {pool.std():.3f}", flush=True)

    def loss_fn(step: int):
        rng = random.Random(f"scenes-{stream}-{step}")
        noise_rng = torch.Generator().manual_seed(rng.getrandbits(40))
        chosen = [rng.randrange(len(pool)) for _ in range(args.batch_size)]
        prompts = ["" if rng.random() < 0.1 else describe(said[i], rng) for i in chosen]
        padded = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        x0 = pool[chosen].to(args.device)
        noise = torch.randn(x0.shape, generator=noise_rng).to(args.device)
        t = draw_timesteps(len(x0), noise_rng).to(args.device)
        alpha = alphas[t].sqrt()[:, None, None, None]
        sigma = (1 - alphas[t]).sqrt()[:, None, None, None]
        with autocast(args.device):
            embeds = model.text_encoder(padded.input_ids.to(args.device))[0]
            v = model.unet(alpha * x0 + sigma * noise, t, embeds).sample
        loss = (v.float() - (alpha * noise - sigma * x0)).square().mean()
        return loss, {}

    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate, threads=args.threads,
        seed=args.seed, warmup_steps=200, decay_from=args.decay_from, ema_decay=0.998,
    )  # fmt: skip
    groups = [
        {"params": list(model.unet.parameters())},
        {"params": list(model.text_encoder.parameters()), "lr": args.text_learning_rate},
    ]

    def save(ema: TextToLatents, step: int) -> None:
        save_pipeline(ema, scheduler)

    train(model, loss_fn, config, parameters=groups, on_checkpoint=save)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
