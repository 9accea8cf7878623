"""Distil `embedded/scenes` to one step: `embedded/scenes-turbo`, usable at 2 and 4 steps too.

    python scripts/train_embedded/turbo.py --minutes 75                       # one process
    torchrun --nproc-per-node 2 scripts/train_embedded/turbo.py --minutes 75  # faster on 2 cores

Distribution matching distillation (2311.18828), as small as it gets. A student that starts from
the teacher's weights makes a picture from pure noise in one step; it learns

- for the first `--regression-steps`, from pairs of noise and the teacher's picture of it at its
  guidance (made at the start, kept in `--work`), which ties layouts to noises: a distribution
  alone would let the student forget part of it, and noise search lives on that variety;
- then from the difference between the teacher's guided prediction and that of a third network,
  which learns to denoise the student's pictures: their difference points to where the teacher
  finds pictures more likely than the student makes them. The pairs stay as a small term.

Part of each batch starts at the later timesteps of 4 steps, from noised renders, so that more
steps refine. Text encoder, tokenizer and autoencoder are the teacher's.
"""

import argparse
import copy
import json
import os
import random
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from loop import LoopConfig, rank, train
from scenes import encode_pool, make_scheduler, save_text_encoder
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from align.diffusion.sample import sample
from align.models.precision import autocast
from align.scenes.grammar import Scene, describe

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "align/embedded/scenes"
OUT = ROOT / "align/embedded/scenes-turbo"
FIRST = 999  # the timestep of one step
LATER = (749, 499, 249)  # and the others of four


class Student(nn.Module):
    """Both trained networks under one roof, so that one optimizer and one EMA hold them."""

    def __init__(self, teacher: UNet2DConditionModel):
        super().__init__()
        self.unet = copy.deepcopy(teacher)
        self.fake = copy.deepcopy(teacher)


class Text:
    """The frozen text encoder: prompts to embeddings, the empty prompt's kept."""

    def __init__(self, folder: Path, device: str):
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.device = device
        self.empty = self([""])

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        padded = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        return self.encoder(padded.input_ids.to(self.device))[0]


class Schedule:
    """Noising and what v-prediction says of the clean latents."""

    def __init__(self, scheduler: DDIMScheduler, device: str):
        alphas = scheduler.alphas_cumprod.to(device)
        self.alpha, self.sigma = alphas.sqrt(), (1 - alphas).sqrt()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.at(t)
        return alpha * x0 + sigma * noise

    def clean(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.at(t)
        return alpha * x - sigma * v.float()

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.at(t)
        return alpha * noise - sigma * x0


@torch.no_grad()
def guided(unet: nn.Module, x: Tensor, t: Tensor, embeds: Tensor, empty: Tensor, scale: float):
    """The teacher's v-prediction under classifier-free guidance."""
    both = torch.cat([empty.expand_as(embeds), embeds])
    v = unet(torch.cat([x, x]), torch.cat([t, t]), both).sample.float()
    without, with_prompt = v.chunk(2)
    return without + scale * (with_prompt - without)


@torch.no_grad()
def make_pairs(args, teacher, text: Text, scheduler, said: list[Scene], path: Path) -> dict:
    """Noises, the teacher's latents of them, and their prompts; read from `path` if it is there."""
    if path.exists():
        return torch.load(path, weights_only=True)
    rng = random.Random(f"turbo-pairs-{args.seed}-{rank()}")
    noises, latents, prompts = [], [], []
    for start in range(0, args.pairs, args.batch_size):
        batch = [describe(rng.choice(said), rng) for _ in range(args.batch_size)]
        noise = draw((len(batch), 4, 16, 16), rng).to(args.device)
        embeds = text(batch)

        def predict(x: Tensor, t: Tensor, embeds: Tensor = embeds) -> Tensor:
            with autocast(args.device):
                return guided(teacher, x, t.expand(len(x)), embeds, text.empty, args.guidance_scale)

        noises.append(noise.cpu())
        latents.append(
            sample(predict, scheduler, noise, num_inference_steps=args.teacher_steps).cpu()
        )
        prompts += batch
        if start // args.batch_size % 10 == 0:
            print(f"{start + len(batch)} of {args.pairs} pairs", flush=True)
    pairs = {"noise": torch.cat(noises), "latents": torch.cat(latents), "prompts": prompts}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(pairs, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
    return pairs


def draw(shape: tuple[int, ...], rng: random.Random) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.getrandbits(40)))


def matching_loss(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """A loss whose gradient by x is (fake - real) / mean |x - real| (2311.18828, equation 8)."""
    scale = (x.detach() - real).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-3)
    target = x.detach() - (fake - real) / scale
    return 0.5 * F.mse_loss(x, target)


def save_pipeline(unet: nn.Module, text_encoder: CLIPTextModel, out: Path, note: dict) -> None:
    """A StableDiffusionPipeline folder; what is not trained is the teacher's."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(TEACHER / name, out / name, dirs_exist_ok=True)
    shutil.copy(TEACHER / "model_index.json", out / "model_index.json")
    save_text_encoder(text_encoder, out / "text_encoder")
    shipped = copy.deepcopy(unet).to(torch.float16)
    shipped.register_to_config(_name_or_path="")  # else the folder of this machine is shipped
    shipped.save_pretrained(out / "unet")
    (out / "training.json").write_text(json.dumps(note, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
    parser.add_argument("--pairs", type=int, default=3072, help="noise and picture, per process")
    parser.add_argument("--pool", type=int, default=4096, help="renders encoded per process")
    parser.add_argument("--teacher-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--regression-steps", type=int, default=300)
    parser.add_argument("--regression-weight", type=float, default=0.25)
    parser.add_argument("--later", type=float, default=0.25, help="share of later timesteps")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--fake-learning-rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "work/turbo")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    scheduler, text = make_scheduler(), Text(TEACHER, args.device)
    schedule = Schedule(scheduler, args.device)
    vae = AutoencoderKL.from_pretrained(TEACHER / "vae").to(args.device).eval()
    teacher = UNet2DConditionModel.from_pretrained(TEACHER / "unet").to(args.device).float()
    if args.device == "cpu":
        teacher.set_attn_processor(AttnProcessor())  # fused attention is slow backwards on the CPU
    model = Student(teacher).train()
    teacher.eval().requires_grad_(False)
    pool, said = encode_pool(vae, f"turbo-{args.seed}-{rank()}", args.pool)
    pairs = make_pairs(
        args, teacher, text, scheduler, said, args.work / f"pairs-{args.seed}-{rank()}.pt"
    )
    print(f"{len(pool)} renders, {len(pairs['prompts'])} pairs", flush=True)

    def regression(rng: random.Random, count: int) -> Tensor:
        """The student's one step against the teacher's picture of the same noise."""
        chosen = [rng.randrange(len(pairs["prompts"])) for _ in range(count)]
        noise, target = (pairs[k][chosen].to(args.device) for k in ("noise", "latents"))
        t = torch.full((count,), FIRST, device=args.device)
        with autocast(args.device):
            v = model.unet(noise, t, text([pairs["prompts"][i] for i in chosen])).sample
        # Pseudo-Huber, as layouts that the student cannot know yet should not blur the others.
        distance = (schedule.clean(noise, v, t) - target).square().mean((1, 2, 3))
        return (distance + 0.01).sqrt().mean() - 0.1

    def student_pictures(rng: random.Random) -> tuple[Tensor, Tensor]:
        """Clean latents by one step of the student, with gradient, and their embeddings."""
        chosen = [rng.randrange(len(pool)) for _ in range(args.batch_size)]
        embeds = text([describe(said[i], rng) for i in chosen])
        later = int(args.later * args.batch_size)
        steps = [rng.choice(LATER) for _ in range(later)] + [FIRST] * (args.batch_size - later)
        t = torch.tensor(steps, device=args.device)
        noise = draw((args.batch_size, 4, 16, 16), rng).to(args.device)
        x = schedule.noised(pool[chosen].to(args.device), noise, t)
        with autocast(args.device):
            v = model.unet(x, t, embeds).sample
        return schedule.clean(x, v, t), embeds

    def loss_fn(step: int):
        rng = random.Random(f"turbo-{args.seed}-{rank()}-{step}")
        if step < args.regression_steps:
            loss = regression(rng, args.batch_size)
            return loss, {"regression": float(loss.detach())}
        x, embeds = student_pictures(rng)
        near = torch.tensor(
            [rng.randrange(20, 980) for _ in range(args.batch_size)], device=args.device
        )
        noise = draw(x.shape, rng).to(args.device)
        noisy = schedule.noised(x.detach(), noise, near)
        with autocast(args.device):
            v_fake = model.fake(noisy, near, embeds).sample.float()
            v_real = guided(teacher, noisy, near, embeds, text.empty, args.guidance_scale)
        fake = schedule.clean(noisy, v_fake.detach(), near)
        real = schedule.clean(noisy, v_real, near)
        matched = matching_loss(x, real, fake)
        # One pass of the fake network serves both: its prediction and its own training.
        denoising = F.mse_loss(v_fake, schedule.velocity(x.detach(), noise, near))
        paired = regression(rng, args.batch_size // 4)
        loss = matched + args.regression_weight * paired + denoising
        gap = float((fake - real).square().mean().sqrt())
        numbers = {"fake": float(denoising.detach()), "regression": float(paired.detach())}
        return loss, {**numbers, "gap": gap}

    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate, threads=args.threads,
        seed=args.seed, warmup_steps=50, decay_from=0.6, ema_decay=0.99, weight_decay=0.0,
    )  # fmt: skip
    groups = [
        {"params": list(model.unet.parameters())},
        {"params": list(model.fake.parameters()), "lr": args.fake_learning_rate},
    ]

    def save(ema: Student, step: int) -> None:
        note = {k: v for k, v in vars(args).items() if not isinstance(v, Path)} | {"steps": step}
        save_pipeline(ema.unet, text.encoder, args.out, note)

    train(model, loss_fn, config, parameters=groups, on_checkpoint=save)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
