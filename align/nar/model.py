"""The NAR transformer for images and clips.

Departures from the drawing in arXiv 2503.10696, following its code: the head
of the last axis reads the trunk's output directly, every further head adds one block, and the
loss is one cross-entropy on the mixed logits. Departures from its code: sequences are kept in
decoding order, only logits inside the grid are computed, and grids may be of any shape.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.nar.checks import check_condition, check_config, check_ids
from align.nar.grid import ORDERS, check_grid, coordinates, index_tables
from align.nar.layers import (
    Block,
    Gate,
    KVCache,
    TextProjection,
    contiguous_state_dict,
    mask_padding,
    rope_table,
)

Condition = Int[Tensor, " b"] | Float[Tensor, "b t c"]


class NARTransformer2DModel(ModelMixin, ConfigMixin):
    """Predicts image tokens from their neighbours, a wavefront at a time.

    Args:
        grid_shape: rows and columns of tokens (time, rows and columns for the 3-D model).
        vocab_size: codes of the image tokenizer.
        width, num_layers, num_heads: trunk size. `ffn_width` defaults to 8/3 width, rounded up
            to a multiple of 256.
        condition: "class" (int labels, `num_classes` is the null label) or "text" (features of
            width `condition_width`, `num_condition_tokens` of them).
        use_condition_mask: whether a pipeline should pass the prompt's padding mask.
        null_mask: mask of the unconditional half, the "prompt"'s own (as published) or "full".
        branch_depth: trunk blocks before the end at which the further heads' blocks branch off;
            0 stacks them on the trunk one after another, as the published checkpoints do.
        fusion: how the heads' logits are mixed: "mean", "scalar" (a learned weight per head) or
            "gate" (weights per token).
        position: "rope" or "learned" (a table over condition and grid, in raster order).
        cond_rope: rotary table of condition positions, "zero" (as published) or "identity".
        decoding: "wavefront", or the baselines "raster" and "parallel" (PAR-4x), which have one
            head and no further blocks.
        dropout: on embeddings, attention output and feed-forward output.

    Raises:
        ValueError: a grid, choice or size that does not fit.
    """

    config: Any  # diffusers makes it, a FrozenDict with attributes
    _supports_gradient_checkpointing = True
    _repeated_blocks: ClassVar[list[str]] = ["Block"]
    axes: ClassVar[int] = 2

    @register_to_config
    def __init__(
        self,
        grid_shape: Sequence[int] = (16, 16),
        vocab_size: int = 16384,
        width: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        ffn_width: int | None = None,
        condition: str = "class",
        num_classes: int = 1000,
        condition_width: int = 2048,
        num_condition_tokens: int = 1,
        use_condition_mask: bool = True,
        null_mask: str = "prompt",
        branch_depth: int = 0,
        fusion: str = "mean",
        position: str = "rope",
        cond_rope: str = "zero",
        rope_base: float = 10000.0,
        norm_eps: float = 1e-5,
        decoding: str = "wavefront",
        dropout: float = 0.1,
    ):
        super().__init__()
        grid = check_grid(grid_shape, axes=(self.axes,))
        check_config(self.config)
        tokens = 1 if condition == "class" else num_condition_tokens
        self.num_condition_tokens = tokens
        self.grid_shape = grid
        self.order = ORDERS[decoding](grid)
        self.num_predictors = len(self.order.sources)
        self.gradient_checkpointing = False
        self._tables: dict[torch.device, dict[str, Tensor]] = {}

        self.token_embedding = nn.Embedding(vocab_size, width)
        if condition == "class":
            self.class_embedding = nn.Embedding(num_classes + 1, width)
        else:
            self.text_projection = TextProjection(condition_width, width)
            null = torch.randn(tokens, condition_width) / condition_width**0.5
            self.null_condition = nn.Parameter(null)
        if self.order.num_learned:
            self.openers = nn.Parameter(torch.randn(self.order.num_learned, width) * 0.02)
        if position == "learned":
            size = tokens + self.order.num_tokens
            self.position_embedding = nn.Parameter(torch.randn(size, width) * 0.02)
        hidden = ffn_width or -(-int(8 * width / 3) // 256) * 256
        self.blocks = nn.ModuleList(
            Block(width, num_heads, hidden, norm_eps, dropout)
            for _ in range(num_layers + self.num_predictors - 1)
        )
        heads = range(self.num_predictors)
        self.head_norms = nn.ModuleList(nn.RMSNorm(width, eps=norm_eps) for _ in heads)
        self.head_outputs = nn.ModuleList(nn.Linear(width, vocab_size, bias=False) for _ in heads)
        if fusion == "scalar":
            self.head_scores = nn.Parameter(torch.zeros(self.num_predictors))
        if fusion == "gate":
            self.gate = Gate(self.num_predictors, width)
        self.embedding_dropout = nn.Dropout(dropout)
        self._init_weights()
        self.register_state_dict_post_hook(contiguous_state_dict)

    def _init_weights(self) -> None:
        """N(0, 0.02) everywhere, as published; the outputs start small so that mixing is even."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and "gate.score" not in name:
                nn.init.normal_(module.weight, std=0.02)
        for output in self.head_outputs:
            nn.init.zeros_(output.weight)  # pyright: ignore[reportArgumentType]

    # --- conditions ----------------------------------------------------------------------------

    def null(self, condition: Condition, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The unconditional counterpart of a batch of conditions, and its mask."""
        if self.config.condition == "class":
            return torch.full_like(condition, self.config.num_classes), None
        null = self.null_condition.to(condition.dtype).expand_as(condition)
        if mask is not None and self.config.null_mask == "full":
            mask = torch.ones_like(mask)
        return null, mask

    def embed_condition(self, condition: Condition) -> Float[Tensor, "b t d"]:
        if self.config.condition == "class":
            return self.class_embedding(condition)[:, None]
        return self.text_projection(condition.to(self.text_projection.fc1.weight.dtype))

    # --- tables --------------------------------------------------------------------------------

    def tables(self, device: torch.device) -> dict[str, Tensor]:
        """Index, rotary and mask tables on `device`; sequence positions, not slots."""
        if device not in self._tables:
            order, config, first = self.order, self.config, self.num_condition_tokens
            where = coordinates(self.grid_shape)[order.places]
            head_dim = config.width // config.num_heads
            rope = rope_table(where, first, head_dim, config.rope_base, config.cond_rope)
            tables = {**index_tables(order, first), "rope": rope}
            self._tables[device] = {name: table.to(device) for name, table in tables.items()}
        return self._tables[device]

    # --- network -------------------------------------------------------------------------------

    def embed_slots(self, ids: Int[Tensor, "b n"], slots: Int[Tensor, " k"]) -> Tensor:
        """Embed slots; `ids` are the tokens so far, in decoding order."""
        if not self.order.num_learned:
            return self.token_embedding(ids[:, slots])
        table = self.openers.to(self.token_embedding.weight.dtype)
        known = self.token_embedding(ids[:, slots.clamp(max=ids.shape[1] - 1)])
        opener = table[(slots - self.order.num_tokens).clamp(min=0)]
        return torch.where((slots < self.order.num_tokens)[None, :, None], known, opener)

    def trunk(
        self,
        x: Float[Tensor, "b l d"],
        start: int,
        mask: Bool[Tensor, "..."] | None = None,
        caches: list[KVCache] | None = None,
    ) -> list[Float[Tensor, "b l d"]]:
        """Run the blocks on sequence positions from `start` on; one hidden state per head."""
        tables = self.tables(x.device)
        end = start + x.shape[1]
        rope = tables["rope"][start:end] if self.config.position == "rope" else None
        if self.config.position == "learned":
            x = x + self.position_embedding[tables["places"][start:end]].to(x.dtype)
        num_layers, depth = self.config.num_layers, self.config.branch_depth
        states = [x]
        for number, block in enumerate(self.blocks):
            branches = number >= num_layers and depth > 0
            x = states[num_layers - depth] if branches else states[-1]
            cache = caches[number] if caches is not None else None
            if self.gradient_checkpointing and torch.is_grad_enabled() and cache is None:
                x = checkpoint(block, x, rope, mask, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache)
            states.append(x)
        return states[num_layers:]

    def mixed_logits(
        self, hidden: list[Float[Tensor, "b k d"]], available: Bool[Tensor, "heads k"]
    ) -> Float[Tensor, "b k v"]:
        """The weighted mean of the heads' logits (section 3.2 of arXiv 2503.10696)."""
        normed = [norm(h) for norm, h in zip(self.head_norms, hidden, strict=True)]
        if len(normed) == 1:
            return self.head_outputs[0](normed[0]).float()
        weights = self.fusion_weights(normed, available)
        # mixing is linear: scale the hidden states, which are far smaller than the logits
        parts = [
            output(h * w[..., None].to(h.dtype)).float()
            for output, h, w in zip(self.head_outputs, normed, weights, strict=True)
        ]
        return reduce(torch.add, parts)

    def fusion_weights(
        self, normed: list[Float[Tensor, "b k d"]], available: Bool[Tensor, "heads k"]
    ) -> Float[Tensor, "heads #b k"]:
        """Non-negative weights that sum to one over the heads that have a neighbour."""
        used = available[:, None]  # (heads, 1, k)
        if self.config.fusion == "scalar":
            scores = self.head_scores.float()[:, None, None]
        elif self.config.fusion == "gate":
            scores = self.gate(normed)
        else:
            return used / used.sum(0)
        return scores.masked_fill(~used, -torch.inf).softmax(0)

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        condition: Condition,
        condition_mask: Bool[Tensor, "b t"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
        return_heads: bool = False,
    ) -> Float[Tensor, "b n v"] | tuple[Float[Tensor, "b n v"], list[Float[Tensor, "b n v"]]]:
        """Logits of every token given all tokens of smaller distance, in raster order.

        Args:
            ids: tokens in raster order.
            condition: class labels, or text features `[batch, tokens, width]`.
            condition_mask: True at text features that may be attended to.
            drop: rows whose condition is replaced by the null condition.
            return_heads: also return each head's own logits (raster order; a head without a
                neighbour at a token has meaningless logits there, see `order.available`).
        """
        tables = self.tables(ids.device)
        if drop is not None:
            null, null_mask = self.null(condition, condition_mask)
            rows = drop.view(-1, *[1] * (condition.ndim - 1))
            condition = torch.where(rows, null, condition)
            if condition_mask is not None and null_mask is not None:
                condition_mask = torch.where(drop[:, None], null_mask, condition_mask)
        ordered = ids[:, tables["raster"]]
        slots = self.embed_slots(ordered, tables["slots"])
        x = self.embedding_dropout(torch.cat([self.embed_condition(condition), slots], dim=1))
        mask = mask_padding(tables["mask"], condition_mask)
        states = self.trunk(x, 0, mask)
        hidden = [h[:, at] for h, at in zip(states, tables["sources"], strict=True)]
        inverse = tables["inverse"]
        logits = self.mixed_logits(hidden, tables["available"])[:, inverse]
        if not return_heads:
            return logits
        heads = zip(self.head_norms, self.head_outputs, hidden, strict=True)
        return logits, [output(norm(h)).float()[:, inverse] for norm, output, h in heads]

    def teacher_forced_logits(
        self,
        ids: Int[Tensor, "b n"],
        condition: Condition,
        condition_mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Mixed logits of given tokens in raster order, after checking the input."""
        check_ids(self, ids)
        check_condition(self, condition, condition_mask)
        return self(ids, condition, condition_mask)

    def log_probs(
        self,
        ids: Int[Tensor, "b n"],
        condition: Condition,
        condition_mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Exact log-probability of each token, raster order (temperature 1, no guidance).

        Tokens of one wavefront are independent given the earlier ones, so their sum is the
        log-probability of the picture, from a single forward pass.
        """
        logits = self.teacher_forced_logits(ids, condition, condition_mask)
        return -F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")


class NARTransformer3DModel(NARTransformer2DModel):
    """The same for clips: a grid of (time, height, width) and a third head along time."""

    axes: ClassVar[int] = 3
