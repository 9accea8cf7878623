"""How much memory an update takes, found out without weights: the update runs on `meta` tensors.

Meta tensors have shapes and no data. A dispatch mode sees every tensor that an operator makes and
every one that is freed, forward and backward, and so knows the peak.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

META = torch.device("meta")
BYTES = {"8bit": 1.0, "4bit": 0.53}  # per weight of a linear layer; NF4 with its block scales


@dataclass(frozen=True)
class Footprint:
    """Bytes that a computation takes beyond its inputs."""

    held: int
    """What its graph keeps from the forward to the backward pass."""
    peak: int
    """The most at any moment, both passes taken together."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the context that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):  # made outside, such as weights: views are no new bytes
                self.seen.setdefault(given.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage() not in self.seen:
                storage = made.untyped_storage()
                self.seen[storage] = size = storage.nbytes()
                self.live += size
                weakref.finalize(storage, self._freed, size)
        # Convolutions work on copies of what they read and write, in layouts of their own.
        copies = (args, result) if "convolution" in func.__name__ else ()
        within = sum(t.nbytes for t in tree_leaves(copies) if isinstance(t, Tensor))
        self.peak = max(self.peak, self.live + within)
        return result

    def _freed(self, size: int) -> None:
        self.live -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as fused kernels have it: inputs, output and a row of sums are kept, no matrix.

    On meta tensors PyTorch would take its plain kernel, whose matrices no device here needs. A
    function mode cannot do this: it is off while checkpointing recomputes.
    """
    functional = torch.nn.functional
    real = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(
        query, key, value
    )
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return tuple(torch.empty_like(given) for given in ctx.saved_tensors[:3])


def footprint(
    run: Callable[[], Tensor], *, backward: bool = True, offload: bool = False
) -> Footprint:
    """The footprint of `run` on meta tensors and, where asked, of its backward pass.

    `offload` leaves what the graph keeps out, as `save_on_cpu` moves it elsewhere.
    """
    saved: AbstractContextManager[Any] = nullcontext()
    if offload:
        saved = torch.autograd.graph.saved_tensors_hooks(_leave, _fetch)
    with fused_attention(), LiveBytes() as bytes_, torch.set_grad_enabled(backward):
        with saved:
            result = run()
        held = bytes_.live
        if backward:
            result.float().mean().backward()
        return Footprint(held, bytes_.peak)


def _leave(tensor: Tensor) -> Any:
    if isinstance(tensor, torch.nn.Parameter):
        return tensor
    return tensor.shape, tensor.stride(), tensor.dtype


def _fetch(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    shape, stride, dtype = kept
    return torch.empty_strided(shape, stride, dtype=dtype, device=META)


def weight_bytes(module: nn.Module, quantize: str | None = None) -> float:
    """Bytes of a module's weights, its linear layers in 8 or 4 bits where asked."""
    total = 0.0
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        parent = module.get_submodule(name.rpartition(".")[0])
        packed = (
            quantize is not None
            and isinstance(parent, nn.Linear)
            and name.endswith("weight")
            and ".lora_" not in name
        )
        each = BYTES[quantize] if packed and quantize else value.element_size()
        total += value.numel() * each
    return total
