"""One update: images through the gradient window, their reward, its gradient, a step."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.alignprop.regularize import DistanceToBase
from align.alignprop.rollout import rollout
from align.alignprop.session import Session
from align.alignprop.windows import Draw, draw_window
from align.config.train import METHODS
from align.diffusion.pixels import decode
from align.diffusion.sample import make_noise
from align.language.prompts import draw_prompts
from align.models.lora import lora_disabled
from align.training.groups import flat_share
from align.training.optimizer import step_optimizer
from align.training.seeding import image_seed, seeded
from align.training.stopping import Diverged, agree


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

    denoise = session.denoiser(
        session.embed(prompts), detach_uncond=c.detach_uncond, checkpointing=c.checkpointing
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
    first = accelerator.process_index * session.share
    parts: list[BatchLoss] = []
    learning_rate, norm = session.optimizer.param_groups[0]["lr"], None
    session.optimizer.zero_grad()
    # A user's reward may use the global generators: their state follows from the update too.
    with seeded(image_seed("update", c.seed, update, accelerator.process_index)):
        for start in range(first, first + session.share, session.micro):
            indices = range(start, start + session.micro)
            with accelerator.accumulate(session.whole), saved_on_cpu(session):
                fault = None
                try:
                    part = session.whole(loss_of, session, update, indices)
                except Diverged as error:
                    fault, part = error, None
                agree(accelerator, fault, stop_asked())
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
    """Step the optimizer and what follows a step; returns the gradient's norm before clipping."""
    c, accelerator = session.config, session.accelerator
    if c.shard:  # no wrapper synchronizes them
        for parameter in session.parameters:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")  # pyright: ignore
    if update == 0 and METHODS[c.method].through_sampler:
        _refuse_flatness(session)
    norm, stepped = step_optimizer(session, session.parameters, c.max_grad_norm)
    if stepped:
        session.schedule.step()
        if session.ema is not None:
            session.ema.step(session.parameters)
    return norm


def _refuse_flatness(session: Session) -> None:
    """Raise ValueError where no weight has a gradient; the distance to the base has none at the
    first update either."""
    gradients = [p.grad for p in session.parameters if p.grad is not None]
    if not any(gradient.any() for gradient in gradients):
        raise ValueError(
            "the reward's gradient is zero: its scores do not change with the images "
            "(a constant, or a threshold)"
        )


def _record(session: Session, parts: list[BatchLoss]) -> dict[str, Any]:
    """Means over an update's images in all processes; the running scales take them in."""
    gather: Any = session.accelerator.gather
    terms = {n: gather(torch.cat([part.terms[n] for part in parts])) for n in parts[0].terms}
    scores = gather(torch.cat([part.scores for part in parts]))
    if session.scale is not None:
        session.scale.update(terms)
    record = {"reward": scores.mean().item(), "reward_std": scores.std(correction=0).item()}
    if METHODS[session.config.method].compares:
        record["flat_groups"] = flat_share(session, scores, session.config.group_size)
    record["terms"] = {name: score.mean().item() for name, score in terms.items()}
    if parts[0].kl is not None:
        record["kl"] = gather(torch.stack([p.kl for p in parts if p.kl is not None])).mean().item()
    if parts[0].image_gradients:
        names = parts[0].image_gradients
        stacks = {n: torch.stack([part.image_gradients[n] for part in parts]) for n in names}
        record["term_grad_norms"] = {n: gather(stack).mean().item() for n, stack in stacks.items()}
    return record
