"""An update's loss: images through the gradient window, and their reward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.alignprop.regularize import DistanceToBase
from align.alignprop.rollout import rollout
from align.alignprop.windows import Draw, draw_window
from align.config.train import METHODS
from align.diffusion.pixels import decode
from align.diffusion.sample import make_noise
from align.language.prompts import draw_prompts
from align.models.lora import lora_disabled
from align.training.groups import flat_share
from align.training.optimizer import average_gradients
from align.training.pictures import image_terms, means_of
from align.training.runs import Run
from align.training.seeding import image_seed, seeded
from align.training.stopping import agreed


@dataclass
class BatchLoss:
    """The loss of some images, what it is made of, and their draw."""

    loss: Float[Tensor, ""]
    draw: Draw
    terms: dict[str, Float[Tensor, " n"]] = field(default_factory=dict)
    """The reward's, of images that the model has drawn; none of pictures of one's own."""
    scores: Float[Tensor, " n"] | None = None
    kl: Float[Tensor, ""] | None = None
    image_gradients: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """What else the update's record says, as means over images."""


def batch_loss(run: Run, update: int, indices: Sequence[int]) -> BatchLoss:
    """Minus the mean reward of an update's images with these global indices.

    AlignProp (2310.03739) with `kl_weight` times the distance to the base model added.
    Raises Diverged where a score or an image is not finite, ValueError for a faulty reward.
    """
    c, pipe = run.config, run.pipe
    rows = draw_prompts(len(run.prompts), seed=c.seed, update=update, indices=indices)
    prompts, metadata = run.prompts.pick(rows)
    draw = draw_window(
        run.sampler.window, c.num_inference_steps, seed=c.seed, update=update, indices=indices
    )

    def noise(purpose: str) -> Tensor:
        seeds = [image_seed(purpose, c.seed, update, index) for index in indices]
        return make_noise(pipe, seeds, c.height, c.width, c.num_frames)

    denoise = run.sampler.denoiser(
        run.sampler.embed(prompts), detach_uncond=c.detach_uncond, checkpointing=c.checkpointing
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
        * loss_scale(run.accelerator)
        / (len(indices) * max(draw.fresh, 1)),  # images that the mean loss is of
    )
    images = decode(pipe, latents, checkpointing=c.checkpointing)
    repeats = len(images) // len(prompts)
    each = list(indices) * repeats
    terms = image_terms(run, images, prompts * repeats, metadata * repeats, each, update, each)
    scores = run.reward.combine(run.scale(terms) if run.scale else terms)
    gradients = term_gradients(images, terms) if c.term_gradients else {}
    kl = distance.mean() if distance else None
    loss = -scores.mean() if kl is None else c.kl_weight * kl - scores.mean()
    return BatchLoss(
        loss=loss,
        terms={name: score.detach() for name, score in terms.items()},
        scores=run.reward.combine(terms).detach(),
        draw=draw,
        kl=None if kl is None else kl.detach(),
        image_gradients=gradients,
    )


def loss_scale(accelerator: Any) -> float:
    """What accelerate multiplies a loss by before its backward pass."""
    scaler = accelerator.scaler
    return (1.0 if scaler is None else scaler.get_scale()) / accelerator.gradient_accumulation_steps


def term_gradients(
    images: Float[Tensor, "b *t 3 h w"], terms: dict[str, Float[Tensor, " b"]]
) -> dict[str, Float[Tensor, ""]]:
    """The L2 norm of each term's gradient by an image, averaged over the images."""
    norms = {}
    for name, scores in terms.items():
        (grad,) = torch.autograd.grad(scores.sum(), images, retain_graph=True)
        norms[name] = grad.flatten(1).norm(dim=1).mean()
    return norms


class LossModule(nn.Module):
    """A loss as the forward pass of the module that it trains.

    Sampling calls the denoiser many times; a distributed wrapper synchronizes the gradients of one
    forward pass. So what is wrapped is this module, and a pass is the whole way to the loss.
    """

    def __init__(self, module: nn.Module, loss: Callable[[Run, int, Sequence[int]], BatchLoss]):
        super().__init__()
        self.module, self.forward = module, loss


def losses(run: Run, update: int) -> Iterator[BatchLoss]:
    """The loss of this process's images of an update, one forward pass after the other.

    Raises Diverged for what is not finite and Interrupted once somebody asks, in any process;
    ValueError for a reward without effect on the weights.
    """
    c, accelerator = run.config, run.accelerator
    if update and run.sampler.old:
        run.sampler.old.follow(update)
    share = c.batch_size // accelerator.num_processes
    micro = share // accelerator.gradient_accumulation_steps
    first = accelerator.process_index * share
    # A user's reward may use the global generators: their state follows from the update too.
    with seeded(image_seed("update", c.seed, update, accelerator.process_index)):
        for start in range(first, first + share, micro):
            with accelerator.accumulate(run.model), saved_on_cpu(run):
                with agreed(run):
                    part = run.model(run, update, range(start, start + micro))
                yield part
    if c.shard:  # no wrapper synchronizes them
        average_gradients(run)
    if update == 0 and METHODS[c.method].through_sampler:
        _refuse_flatness(run)


def figures(run: Run, parts: list[BatchLoss]) -> dict[str, Any]:
    """Means over an update's images in all processes; the running scales take them in."""
    gather: Any = run.accelerator.gather
    c, record = run.config, {}
    terms = {n: gather(torch.cat([part.terms[n] for part in parts])) for n in parts[0].terms}
    if terms:
        scores = gather(torch.cat([part.scores for part in parts if part.scores is not None]))
        if "spread" in run.course:
            scaled = run.reward.combine(run.scale(terms)) if run.scale else scores
            run.course["spread"] = running_spread(run.course["spread"], scaled, c.group_size)
        if run.scale is not None:
            run.scale.update(terms)
        known = scores[scores.isfinite()]  # all, unless a server failed and may
        if len(known):
            record = {"reward": known.mean().item(), "reward_std": known.std(correction=0).item()}
        if len(known) < len(scores):
            record["dropped"] = 1 - len(known) / len(scores)
        if c.compares:
            record["flat_groups"] = flat_share(run, scores, c.group_size)
        record["terms"] = means_of(terms)
    for name in parts[0].figures:
        values = torch.stack([part.figures[name] for part in parts])
        record[name] = gather(values).mean().item()
    if parts[0].kl is not None:
        record["kl"] = gather(torch.stack([p.kl for p in parts if p.kl is not None])).mean().item()
    if parts[0].image_gradients:
        names = parts[0].image_gradients
        stacks = {n: torch.stack([part.image_gradients[n] for part in parts]) for n in names}
        record["term_grad_norms"] = {n: gather(stack).mean().item() for n, stack in stacks.items()}
    return record | {"window": parts[0].draw.label}


def running_spread(former: float | None, scores: Float[Tensor, " n"], group_size: int) -> float:
    """The running deviation of scores from their group's mean, of which nine tenths are former."""
    groups = scores.double().view(-1, group_size)
    groups = groups[groups.isfinite().all(1)]
    if not len(groups):
        return former or 0.0
    square = (groups - groups.mean(1, keepdim=True)).square().mean().item()
    return square**0.5 if former is None else (0.9 * former**2 + 0.1 * square) ** 0.5


def saved_on_cpu(run: Run) -> Any:
    """Where offloading is asked for, keep what the backward pass needs in main memory until then;
    weights, which it needs as well, stay where they are."""
    if not run.config.offload:
        return nullcontext()
    parts = [part for part in run.pipe.components.values() if isinstance(part, nn.Module)]
    weights = {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}
    saver = torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())

    def pack(tensor: Tensor) -> Any:
        stays = tensor.untyped_storage().data_ptr() in weights
        return tensor if stays else saver.pack_hook(tensor)

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else saver.unpack_hook(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _refuse_flatness(run: Run) -> None:
    """Raise ValueError where no weight has a gradient; the distance to the base has none at the
    first update either."""
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    if not any(gradient.any() for gradient in gradients):
        raise ValueError(
            "the reward's gradient is zero: its scores do not change with the images "
            "(a constant, or a threshold)"
        )
