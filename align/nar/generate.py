"""Decoding with a key-value cache: one forward pass and one sampling call per wavefront."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from align.nar.checks import check_condition, check_ids
from align.nar.layers import KVCache, lay_out_for_decoding, mask_padding
from align.nar.model import Condition, NARTransformer2DModel
from align.nar.scheduler import NARScheduler, draw_uniforms


@dataclass(frozen=True)
class Wavefront:
    """What is known after a forward pass.

    `ids` holds all tokens in raster order, -1 where not decoded yet; `log_probs`, if asked for,
    the log-probabilities of this pass's tokens under the (guided, untruncated) mixture.
    """

    index: int
    ids: Int[Tensor, "b n"]
    log_probs: Float[Tensor, "b k"] | None = None


class Decoder:
    """The state of one decoding run: caches and tokens so far, in decoding order.

    Use as: `logits = decoder.read_condition(...)`, then for every pass but the last
    `logits = decoder.advance(ids)`.
    """

    def __init__(self, model: NARTransformer2DModel, batch: int, with_null: bool):
        config, order = model.config, model.order
        self.model, self.pass_number = model, 0
        lay_out_for_decoding(model)
        weight = model.token_embedding.weight
        # under autocast keys and values come out in its dtype, not in the weights'
        autocast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        rows = batch * (2 if with_null else 1)
        length = model.num_condition_tokens + order.fed[-1]
        shape = (rows, config.num_heads, length, config.width // config.num_heads)
        self.caches = [KVCache(shape, weight.device, dtype) for _ in model.blocks]
        self.ids = torch.zeros(batch, order.num_tokens, dtype=torch.long, device=weight.device)
        self.padding: Bool[Tensor, "rows t"] | None = None

    def read_condition(
        self, condition: Condition, mask: Tensor | None
    ) -> Float[Tensor, "rows k v"]:
        """Pass 0: read the conditions (null rows last), predict the first token."""
        tokens = self.model.num_condition_tokens
        if mask is not None and not mask.bool().all():
            self.padding = mask.bool()
        attend = None
        if tokens > 1:
            attend = self.model.tables(condition.device)["mask"][:tokens, :tokens]
            attend = mask_padding(attend, self.padding)
        x = self.model.embed_condition(condition)
        return self._predict(self.model.trunk(x, 0, attend, self.caches))

    def advance(self, ids: Int[Tensor, "b k"]) -> Float[Tensor, "rows next v"]:
        """Take the tokens of the last pass, predict those of the next."""
        model, order, number = self.model, self.model.order, self.pass_number
        self.ids[:, order.starts[number] : order.starts[number + 1]] = ids
        self.pass_number = number + 1
        first = order.fed[number]
        slots = model.tables(ids.device)["slots"][first : order.fed[number + 1]]
        x = model.embed_slots(self.ids, slots)
        rows = len(self.caches[0].keys)
        if rows > len(x):
            x = x.repeat(rows // len(x), 1, 1)
        attend = None
        if self.padding is not None:
            seen = self.caches[0].length + x.shape[1]
            attend = torch.ones(rows, 1, 1, seen, dtype=torch.bool, device=x.device)
            attend[..., : self.padding.shape[1]] = self.padding[:rows, None, None]
        return self._predict(model.trunk(x, self.caches[0].length, attend, self.caches))

    def _predict(self, states: list[Tensor]) -> Float[Tensor, "rows k v"]:
        """Gather, for every token of the pass, the neighbours' states and mix the heads."""
        order, number = self.model.order, self.pass_number
        span = slice(order.starts[number], order.starts[number + 1])
        tables = self.model.tables(states[0].device)
        read = self.caches[0].length - states[0].shape[1]
        sources = (tables["sources"][:, span] - read).clamp(min=0)
        hidden = [h[:, at] for h, at in zip(states, sources, strict=True)]
        return self.model.mixed_logits(hidden, tables["available"][:, span])

    def drop_null(self) -> None:
        """Go on without the null rows."""
        batch = len(self.ids)
        for cache in self.caches:
            cache.keep(batch)


def decode(
    model: NARTransformer2DModel,
    condition: Condition,
    scheduler: NARScheduler,
    *,
    condition_mask: Bool[Tensor, "b t"] | None = None,
    uniforms: Float[Tensor, "b n"] | None = None,
    given_ids: Int[Tensor, "b n"] | None = None,
    with_log_probs: bool = False,
) -> Iterator[Wavefront]:
    """Decode wavefront by wavefront.

    Args:
        model: in eval mode (dropout would be applied otherwise).
        condition, condition_mask: as for `model.forward`.
        uniforms: one number in [0, 1) per token in decoding order; None decodes greedily.
        given_ids: tokens to keep, raster order, -1 where free. Later tokens see them; a token
            cannot see given tokens farther from the corner than itself.
        with_log_probs: fill in `Wavefront.log_probs`.

    Yields:
        One `Wavefront` per forward pass.

    Raises:
        ValueError, TypeError: a condition or token that the model does not know.
    """
    check_condition(model, condition, condition_mask)
    raster = model.order.raster.to(condition.device)
    if given_ids is not None:
        check_ids(model, given_ids, lowest=-1)
        given_ids = given_ids[:, raster]
    scales = scheduler.guidance_scales(model.order.starts)
    guided = [number for number, scale in enumerate(scales) if scale != 1]
    last_guided = guided[-1] if guided else -1
    decoder = Decoder(model, len(condition), with_null=bool(guided))
    logits: Tensor | None = None
    ids = torch.empty(0)
    known = torch.full_like(decoder.ids, -1)
    for number, scale in enumerate(scales):
        span = slice(model.order.starts[number], model.order.starts[number + 1])
        with torch.no_grad():
            if number > last_guided:
                decoder.drop_null()
            if logits is None:
                rows, mask = _with_null(model, condition, condition_mask, bool(guided))
                logits = decoder.read_condition(rows, mask)
            else:
                logits = decoder.advance(ids)
            mixed = guide(logits, len(condition), scale)
            numbers = uniforms[:, span] if uniforms is not None else None
            ids = scheduler.step(mixed, numbers, return_dict=False)[0]
            if given_ids is not None:
                ids = torch.where(given_ids[:, span] >= 0, given_ids[:, span], ids)
            known[:, raster[span]] = ids
            chosen = None
            if with_log_probs:
                chosen = mixed.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
        yield Wavefront(number, known.clone(), chosen)


def guide(logits: Float[Tensor, "rows k v"], batch: int, scale: float) -> Float[Tensor, "b k v"]:
    """Classifier-free guidance after mixing: null + scale (conditional - null)."""
    if scale == 1:
        return logits[:batch]
    conditional, null = logits[:batch], logits[batch:]
    return null + scale * (conditional - null)


def _with_null(
    model: NARTransformer2DModel, condition: Condition, mask: Tensor | None, with_null: bool
) -> tuple[Tensor, Tensor | None]:
    if not with_null:
        return condition, mask
    null, null_mask = model.null(condition, mask)
    joined = None
    if mask is not None and null_mask is not None:
        joined = torch.cat([mask.bool(), null_mask.bool()])
    return torch.cat([condition, null]), joined


def generate_ids(
    model: NARTransformer2DModel,
    condition: Condition,
    *,
    condition_mask: Bool[Tensor, "b t"] | None = None,
    guidance_scale: float = 1.0,
    guidance_schedule: str = "constant",
    guidance_tokens: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    generator: torch.Generator | list[torch.Generator] | None = None,
    given_ids: Int[Tensor, "b n"] | None = None,
) -> Int[Tensor, "b n"]:
    """Decode token ids in raster order.

    Args:
        condition: int64 labels `[batch]`, or text features `[batch, tokens, width]`.
        guidance_scale: at least 1; 1 is no guidance, and then no null half is computed.
        guidance_schedule, guidance_tokens, temperature, top_k, top_p: see `NARScheduler`.
        greedy: take the most probable token everywhere.
        generator: one, or one per picture.
        given_ids: tokens to keep, -1 where free (prefix and outpainting).

    Raises:
        ValueError, TypeError: a setting, condition or token out of range.
    """
    scheduler = NARScheduler(
        temperature, top_k, top_p, guidance_scale, guidance_schedule, guidance_tokens
    )
    uniforms = None
    if not greedy:
        count = model.order.num_tokens
        uniforms = draw_uniforms(len(condition), count, generator, condition.device)
    was_training = model.training
    model.eval()
    try:
        *_, last = decode(
            model,
            condition,
            scheduler,
            condition_mask=condition_mask,
            uniforms=uniforms,
            given_ids=given_ids,
        )
        return last.ids
    finally:
        model.train(was_training)
