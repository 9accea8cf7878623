"""The decoder block of NAR and LlamaGen: RMSNorm, rotary attention with a cache, SwiGLU."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class KVCache:
    """Keys and values of one block for the part of the sequence read so far."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.keys = torch.empty(shape, device=device, dtype=dtype)  # (b, heads, length, head_dim)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (b, heads, l, head_dim); return everything so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, batch: int) -> None:
        """Forget all but the first `batch` sequences."""
        self.keys, self.values = self.keys[:batch], self.values[:batch]


def rope_table(
    coordinates: Tensor, num_condition_tokens: int, head_dim: int, base: float, condition: str
) -> Float[Tensor, "l half 2"]:
    """Cosines and sines of the rotary angles of condition and grid positions.

    The pairs of a head are shared out over the axes (row first); pair k of an axis with p pairs
    turns by coordinate * base ** (-k / p). Condition positions are not turned ("identity") or,
    as in the published checkpoints, get cos = sin = 0 ("zero"), which blanks their queries and
    keys: attention within the prompt is then a plain average.
    """
    pairs, axes = head_dim // 2, coordinates.shape[1]
    angles = []
    for axis in range(axes):
        count = pairs // axes + (axis < pairs % axes)
        speeds = base ** -(torch.arange(count).float() / count)
        angles.append(coordinates[:, axis, None].float() * speeds)
    angle = torch.cat(angles, dim=1)  # (n, half)
    grid = torch.stack([angle.cos(), angle.sin()], dim=-1)
    head = torch.zeros(num_condition_tokens, pairs, 2)
    if condition == "identity":
        head[..., 0] = 1
    return torch.cat([head, grid])


def rotate(x: Float[Tensor, "b l k h d"], rope: Float[Tensor, "l half 2"]) -> Tensor:
    """Turn the interleaved pairs (2k, 2k + 1) of queries and keys by the angles of `rope`.

    A pair is a complex number and a turn one multiplication, far fewer operations than in reals.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (b, l, k, h, half)
    turned = pairs * torch.view_as_complex(rope)[:, None, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def lay_out_for_decoding(module: nn.Module) -> None:
    """Store the CPU weights of linear layers column by column, in place.

    Decoding multiplies a few rows at a time, which BLAS does about 1.6 times faster that way.
    Values, shapes and gradients stay as they are; `contiguous_state_dict` undoes it for files.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Linear) or layer.weight.device.type != "cpu":
            continue
        if layer.weight.stride(0) != 1:
            layer.weight.data = layer.weight.data.t().contiguous().t()


def contiguous_state_dict(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, metadata: dict
) -> None:
    """State-dict hook: row by row again, as safetensors files need it."""
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and not value.is_contiguous():
            state_dict[name] = value.contiguous()


def mask_padding(
    mask: Bool[Tensor, "q k"], condition_mask: Bool[Tensor, "b t"] | None
) -> Bool[Tensor, "..."]:
    """Hide padded condition tokens from every position but themselves."""
    if condition_mask is None:
        return mask
    tokens = condition_mask.shape[1]
    full = mask.expand(len(condition_mask), 1, *mask.shape).clone()
    full[..., :tokens] &= condition_mask[:, None, None].bool()
    full[..., :tokens, :tokens] |= torch.eye(tokens, dtype=torch.bool, device=mask.device)
    return full


class Attention(nn.Module):
    """Multi-head attention without biases, dropout on the output only."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        rope: Float[Tensor, "l half 2"] | None,
        mask: Bool[Tensor, "..."] | None,
        cache: KVCache | None,
    ) -> Float[Tensor, "b l d"]:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (b, l, 3, h, head_dim)
        turned, values = qkv[:, :, :2], qkv[:, :, 2]
        if rope is not None:
            turned = rotate(turned, rope)
        queries, keys = (t.transpose(1, 2) for t in turned.unbind(2))
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        x = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.dropout(self.out(x.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, hidden: int, norm_eps: float, dropout: float):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, num_heads, dropout)
        self.ffn_norm = nn.RMSNorm(width, eps=norm_eps)
        self.ffn = FeedForward(width, hidden, dropout)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        rope: Float[Tensor, "l half 2"] | None,
        mask: Bool[Tensor, "..."] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b l d"]:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.ffn(self.ffn_norm(x))


class TextProjection(nn.Module):
    """Caption features to model width: linear, tanh-GELU, linear, without biases."""

    def __init__(self, condition_width: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(condition_width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Gate(nn.Module):
    """Per-token weights of the heads from their hidden states (FlashAR, arXiv 2605.09430).

    The last layer starts at zero, so that mixing starts as the plain mean.
    """

    def __init__(self, num_heads: int, width: int):
        super().__init__()
        self.hidden = nn.Linear(num_heads * width, max(width // 8, 1))
        self.score = nn.Linear(max(width // 8, 1), num_heads)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: list[Tensor]) -> Float[Tensor, "heads b k"]:
        scores = self.score(F.silu(self.hidden(torch.cat(hidden, dim=-1))))
        return scores.permute(2, 0, 1).float()
