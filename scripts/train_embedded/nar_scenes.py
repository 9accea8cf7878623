"""Train `embedded/nar-scenes`: a prompt to 16x16 tokens of a 64x64 picture, wavefront by wavefront.

    python scripts/train_embedded/nar_tokenizer.py --minutes 15
    python scripts/train_embedded/nar_scenes.py --minutes 90                       # one process
    python scripts/train_embedded/nar_scenes.py --seed 1 --start align/embedded/nar-scenes  # go on
    torchrun --nproc-per-node 2 scripts/train_embedded/nar_scenes.py --minutes 90  # two cores

Needs the text tokenizer (`tokenizer.py`) and the image tokenizer. The text encoder starts from the
one of `embedded/scenes` where that exists and is trained along. One cross-entropy on the mixed
logits of both heads; matrices inside the blocks are trained by Muon, the rest by AdamW.
"""

import argparse
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from loop import LoopConfig, rank, train
from muon import Muon
from nar_card import write_card
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from align.nar.model import NARTransformer2DModel
from align.nar.pipeline import NARPipeline
from align.nar.scheduler import NARScheduler
from align.nar.tokenizer import ImageTokenizer
from align.precision import autocast
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import CATEGORIES, describe
from align.scenes.render import layout, render

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "align/embedded"
TEXT_TOKENS = 24  # one prompt of the grammar in 20,000 takes 25, and is cut
NULL_SHARE = 0.1  # of prompts dropped, for guidance


class TextToTokens(nn.Module):
    """The two trained parts as one module."""

    def __init__(self, image_tokenizer: ImageTokenizer, words: int, args: argparse.Namespace):
        super().__init__()
        self.text_encoder = make_text_encoder(words)
        self.transformer = NARTransformer2DModel(
            grid_shape=image_tokenizer.grid_shape,
            vocab_size=image_tokenizer.codebook_size,
            width=args.width,
            num_layers=args.layers,
            num_heads=args.width // 64,
            ffn_width=args.width * 8 // 3,
            condition="text",
            condition_width=self.text_encoder.config.hidden_size,
            num_condition_tokens=TEXT_TOKENS,
            use_condition_mask=False,
            cond_rope="identity",
            fusion=args.fusion,
            decoding=args.decoding,
            dropout=0.0,
        )

    def forward(self, ids: Tensor, text_ids: Tensor, drop: Tensor) -> Tensor:
        features = self.text_encoder(text_ids).last_hidden_state
        return self.transformer(ids, features, drop=drop)


def make_text_encoder(words: int) -> CLIPTextModel:
    """The text encoder of `embedded/scenes`, or a fresh one where that is not trained yet."""
    folder = EMBEDDED / "scenes/text_encoder"
    if folder.exists():
        return CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        projection_dim=192,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    return CLIPTextModel(config)


def load_weights(model: TextToTokens, folder: Path) -> None:
    """Take over a pipeline's transformer and text encoder; the optimizer begins anew."""
    parts = {"transformer": NARTransformer2DModel, "text_encoder": CLIPTextModel}
    for name, kind in parts.items():
        trained = kind.from_pretrained(folder / name, dtype=torch.float32)
        getattr(model, name).load_state_dict(trained.state_dict())


class MuonAdamW:
    """Muon for the matrices inside blocks, AdamW for everything else, as one optimizer."""

    def __init__(self, model: TextToTokens, learning_rate: float, text_learning_rate: float):
        matrices, others = [], []
        for name, parameter in model.transformer.named_parameters():
            inside = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if inside else others).append(parameter)
        text = {"params": list(model.text_encoder.parameters()), "lr": text_learning_rate}
        self.parts = [
            Muon(matrices, lr=learning_rate, weight_decay=0.01),
            torch.optim.AdamW(
                [{"params": others}, text], lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
            ),
        ]
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def draw(stream: str, step: int, count: int) -> tuple[list[str], Tensor]:
    """Prompts and true pictures [count, 3, 64, 64] in [0, 1], of seen combinations."""
    rng = random.Random(f"nar-{stream}-{step}")
    prompts, images = [], []
    for number in range(count):
        category = CATEGORIES[(step * count + number) % len(CATEGORIES)]
        scene = random_stated_scene(category, rng)
        prompts.append(describe(scene, rng))
        images.append(torch.from_numpy(render(layout(scene, rng))))
    return prompts, torch.stack(images).permute(0, 3, 1, 2).float() / 255


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--text-learning-rate", type=float, default=2e-4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--fusion", default="mean", help="mean, scalar or gate")
    parser.add_argument("--decoding", default="wavefront", help="wavefront, raster or parallel")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "work/nar-scenes")
    parser.add_argument("--out", type=Path, default=EMBEDDED / "nar-scenes")
    parser.add_argument("--image-tokenizer", type=Path, help="default: OUT/image_tokenizer")
    parser.add_argument(
        "--start", type=Path, help="go on from this pipeline's weights, with --seed 1"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    source = args.image_tokenizer or args.out / "image_tokenizer"
    image_tokenizer = ImageTokenizer.from_pretrained(source, dtype=torch.float32)
    image_tokenizer.eval().to(args.device)
    words = CLIPTokenizer.from_pretrained(EMBEDDED / "scenes/tokenizer")
    model = TextToTokens(image_tokenizer, len(words), args).to(args.device)
    if args.start:
        load_weights(model, args.start)
    stream = f"{args.seed}-{rank()}"
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate, threads=args.threads,
        seed=args.seed, decay_from=0.3, ema_decay=0.998,
    )  # fmt: skip

    def loss_fn(step: int) -> tuple[Tensor, dict[str, float]]:
        prompts, images = draw(stream, step, args.batch_size)
        ids = image_tokenizer.encode(images.to(args.device))
        text_ids = words(
            prompts, padding="max_length", max_length=TEXT_TOKENS, truncation=True,
            return_tensors="pt",
        ).input_ids.to(args.device)  # fmt: skip
        generator = torch.Generator().manual_seed(hash_of(stream, step))
        drop = torch.rand(len(ids), generator=generator).to(args.device) < NULL_SHARE
        with autocast(args.device):
            logits = model(ids, text_ids, drop)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {}

    def save(ema: TextToTokens, step: int) -> None:
        shipped = ImageTokenizer.from_pretrained(source)
        shipped.register_to_config(_name_or_path="")  # else the folder of this machine is shipped
        pipe = NARPipeline(
            ema.transformer.eval().to(torch.float16),
            shipped,
            NARScheduler(temperature=0.7, guidance_scale=2.0),
            words,
            ema.text_encoder.eval().to(torch.float16),
        )
        pipe.save_pretrained(args.out)
        write_card(args.out, pipe, args, step)

    optimizer = MuonAdamW(model, args.learning_rate, args.text_learning_rate)
    train(model, loss_fn, config, optimizer=optimizer, on_checkpoint=save)
    if dist.is_initialized():
        dist.destroy_process_group()


def hash_of(stream: str, step: int) -> int:
    return random.Random(f"nar-drop-{stream}-{step}").getrandbits(40)


if __name__ == "__main__":
    main()
