"""One update: images through the gradient window, their reward, its gradient, a step."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed
from jaxtyping import Float
from torch import Tensor, nn

from align.denoisers import make_denoiser
from align.lora import lora_disabled
from align.pixels import decode
from align.prompts import draw_prompts
from align.sample import make_noise
from align.training.regularize import DistanceToBase
from align.training.rollout import rollout
from align.training.runs import Run
from align.training.session import Session
from align.training.windows import Draw, draw_window, image_seed


class Diverged(ArithmeticError):
    """The reward or a gradient stopped being a finite number."""


class Interrupted(KeyboardInterrupt):
    """Somebody asked the run to stop."""


@dataclass
class BatchLoss:
    """The loss of some images, what it is made of, and their draw."""

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, " n"]]
    scores: Float[Tensor, " n"]
    draw: Draw
    kl: Float[Tensor, ""] | None
    image_gradients: dict[str, Tensor]


def batch_loss(session: Session, update: int, indices: Sequence[int]) -> BatchLoss:
    """Minus the mean reward of an update's images with these global indices.

    AlignProp (2310.03739) with `kl_weight` times the distance to the base model added.
    Raises Diverged where a score or an image is not finite, ValueError for a faulty reward.
    """
    c, pipe = session.config, session.pipe
    rows = draw_prompts(len(session.prompts), seed=c.seed, update=update, indices=indices)
    prompts = [session.prompts.prompts[row] for row in rows]
    metadata = [session.prompts.metadata[row] for row in rows]
    draw = draw_window(
        session.window, c.num_inference_steps, seed=c.seed, update=update, indices=indices
    )

    def noise(purpose: str) -> Tensor:
        seeds = [image_seed(purpose, c.seed, update, index) for index in indices]
        return make_noise(pipe, seeds, c.height, c.width)

    denoise = make_denoiser(
        pipe,
        None,
        guidance_scale=c.guidance_scale,
        detach_uncond=c.detach_uncond,
        checkpointing=c.checkpointing,
        height=c.height,
        width=c.width,
        prompt_embeds=session.embed(prompts),
    )
    distance = DistanceToBase(denoise, lambda: lora_disabled(pipe)) if c.kl_weight else None
    latents = rollout(
        denoise,
        pipe.scheduler,
        noise("noise"),
        draw,
        eta=c.eta,
        generator=[
            torch.Generator().manual_seed(image_seed("eta", c.seed, update, index))
            for index in indices
        ],
        fresh_noise=lambda n: noise(f"fresh-{n}"),
        observe=distance,
        max_step_norm=c.max_step_grad_norm
        * loss_scale(session.accelerator)
        / (len(indices) * max(draw.fresh, 1)),  # images that the mean loss is of
    )
    images = decode(pipe, latents, checkpointing=c.checkpointing)
    repeats = len(images) // len(prompts)
    terms = image_terms(session, images, prompts * repeats, metadata * repeats)
    scores = session.reward.combine(session.scale(terms) if session.scale else terms)
    gradients = term_gradients(images, terms) if c.term_gradients else {}
    kl = distance.mean() if distance else None
    loss = -scores.mean() if kl is None else c.kl_weight * kl - scores.mean()
    return BatchLoss(
        loss=loss,
        terms={name: score.detach() for name, score in terms.items()},
        scores=session.reward.combine(terms).detach(),
        draw=draw,
        kl=None if kl is None else kl.detach(),
        image_gradients=gradients,
    )


def loss_scale(accelerator: Any) -> float:
    """What accelerate multiplies a loss by before its backward pass."""
    scaler = accelerator.scaler
    return (1.0 if scaler is None else scaler.get_scale()) / accelerator.gradient_accumulation_steps


def image_terms(
    session: Session,
    images: Float[Tensor, "b 3 h w"],
    prompts: list[str],
    metadata: list[dict[str, Any]],
) -> dict[str, Float[Tensor, " b"]]:
    """The reward's terms. Raises Diverged where an image or a score is not finite."""
    if not images.isfinite().all():
        raise Diverged("the images are no longer finite numbers")
    terms = session.reward.terms(images, prompts, metadata)
    for name, scores in terms.items():
        if not scores.isfinite().all():
            raise Diverged(f"reward {name} is {scores[~scores.isfinite()][0].item()}")
    return terms


def term_gradients(
    images: Float[Tensor, "b 3 h w"], terms: dict[str, Float[Tensor, " b"]]
) -> dict[str, Float[Tensor, ""]]:
    """The L2 norm of each term's gradient by an image, averaged over the images."""
    norms = {}
    for name, scores in terms.items():
        (grad,) = torch.autograd.grad(scores.sum(), images, retain_graph=True)
        norms[name] = grad.flatten(1).norm(dim=1).mean()
    return norms


def train_step(
    session: Session,
    update: int,
    stop_asked: Any = lambda: False,
    loss_of: Callable[[Session, int, Sequence[int]], BatchLoss] = batch_loss,
) -> dict[str, Any]:
    """One optimizer update by `loss_of`; returns its record for metrics.jsonl.

    The weights are untouched if it raises: Diverged for what is not finite, Interrupted once
    `stop_asked()` in any process, ValueError for a reward without effect on the weights.
    """
    started, accelerator, c = time.perf_counter(), session.accelerator, session.config
    # A user's reward may use the global generators: their state follows from the update too.
    set_seed(image_seed("update", c.seed, update, accelerator.process_index) % 2**32)
    first = accelerator.process_index * session.share
    parts: list[BatchLoss] = []
    learning_rate, norm = session.optimizer.param_groups[0]["lr"], None
    session.optimizer.zero_grad()
    for start in range(first, first + session.share, session.micro):
        indices = range(start, start + session.micro)
        with accelerator.accumulate(session.whole), saved_on_cpu(session):
            fault = None
            try:
                part = session.whole(loss_of, session, update, indices)
            except Diverged as error:
                fault, part = error, None
            agree(session, fault, stop_asked())
            assert part is not None  # agree has raised otherwise
            accelerator.backward(part.loss)
            parts.append(part)
            if accelerator.sync_gradients:
                norm = _step(session, update)
    record = _record(session, parts)
    return {
        "step": update + 1,
        **record,
        "grad_norm": norm,
        "lr": learning_rate,
        "window": parts[0].draw.label,
        "seconds": time.perf_counter() - started,
    }


def agree(session: Run, fault: Diverged | None, stop: bool) -> None:
    """Raise what any process has met, in all of them, so that none waits for another."""
    flags = torch.tensor([fault is not None, stop], dtype=torch.float32)
    if session.accelerator.num_processes > 1:
        flags = session.accelerator.reduce(flags.to(session.accelerator.device))
    if flags[0]:  # pyright: ignore[reportIndexIssue]
        raise fault or Diverged("another process has met a value that is not finite")
    if flags[1]:  # pyright: ignore[reportIndexIssue]
        raise Interrupted


def saved_on_cpu(session: Session) -> Any:
    """Where offloading is asked for, keep what the backward pass needs in main memory until then;
    weights, which it needs as well, stay where they are."""
    if not session.config.offload:
        return nullcontext()
    parts = [part for part in session.pipe.components.values() if isinstance(part, nn.Module)]
    weights = {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}
    saver = torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())

    def pack(tensor: Tensor) -> Any:
        stays = tensor.untyped_storage().data_ptr() in weights
        return tensor if stays else saver.pack_hook(tensor)

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else saver.unpack_hook(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _step(session: Session, update: int) -> float:
    """Clip, step the optimizer and what follows it; returns the gradient's norm before."""
    c, accelerator = session.config, session.accelerator
    if c.shard:  # no wrapper synchronizes them
        for parameter in session.parameters:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")  # pyright: ignore
    norm = accelerator.clip_grad_norm_(session.parameters, c.max_grad_norm or float("inf"))
    norm = float(norm)  # pyright: ignore[reportArgumentType]
    if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler skips such a step
        raise Diverged(f"the gradient's norm is {norm}")
    if norm == 0 and update == 0:  # the distance to the base has no gradient there either
        raise ValueError(
            "the reward's gradient is zero: its scores do not change with the images "
            "(a constant, or a threshold)"
        )
    session.optimizer.step()
    session.schedule.step()
    session.optimizer.zero_grad()
    if session.ema is not None:
        session.ema.step(session.parameters)
    return norm


def _record(session: Session, parts: list[BatchLoss]) -> dict[str, Any]:
    """Means over an update's images in all processes; the running scales take them in."""
    gather: Any = session.accelerator.gather
    terms = {n: gather(torch.cat([part.terms[n] for part in parts])) for n in parts[0].terms}
    scores = gather(torch.cat([part.scores for part in parts]))
    if session.scale is not None:
        session.scale.update(terms)
    record = {"reward": scores.mean().item(), "reward_std": scores.std(correction=0).item()}
    record["terms"] = {name: score.mean().item() for name, score in terms.items()}
    if parts[0].kl is not None:
        record["kl"] = gather(torch.stack([p.kl for p in parts if p.kl is not None])).mean().item()
    if parts[0].image_gradients:
        names = parts[0].image_gradients
        stacks = {n: torch.stack([part.image_gradients[n] for part in parts]) for n in names}
        record["term_grad_norms"] = {n: gather(stack).mean().item() for n, stack in stacks.items()}
    return record
