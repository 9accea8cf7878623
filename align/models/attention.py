"""Which attention implementation a denoiser uses: xformers, PyTorch's SDPA or plain math."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import AttnProcessor2_0, JointAttnProcessor2_0
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from align.runs.files import brief

CHOICES = ("auto", "xformers", "sdpa", "math")


def set_attention(
    denoiser: nn.Module,
    attention: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    masked: bool = False,
) -> None:
    """Make a UNet or transformer use this attention, forward and backward.

    `auto` takes xformers on CUDA where it can run the denoiser's shapes, else SDPA, which
    diffusers uses by itself, and always where attention is `masked`: diffusers' xformers backend
    adds a mask's ones and zeros to the logits. Raises ValueError where xformers is asked for and
    cannot run.
    """
    if attention not in CHOICES:
        raise ValueError(f"attention is {attention!r}; it must be one of {', '.join(CHOICES)}")
    if attention == "math":
        _use_math(denoiser)
    elif attention in ("auto", "xformers"):
        problem = "xformers would misread the masks of this model's attention"
        if not masked:
            problem = xformers_problem(denoiser, device, dtype)
        if problem is None:
            _use_xformers(denoiser)
        elif attention == "xformers":
            raise ValueError(f"attention is 'xformers', but {problem}; use auto, sdpa or math")


def xformers_problem(denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why xformers cannot run this denoiser here; None where it can."""
    if device.type != "cuda":
        return f"xformers needs a CUDA device and the model is on {device.type}"
    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore
    except Exception as error:  # it may be installed for another torch and fail in any way
        return f"xformers cannot be imported ({brief(error)})"
    for width in sorted(_head_widths(denoiser)):
        query = torch.zeros(1, 16, 2, width, device=device, dtype=dtype, requires_grad=True)
        try:
            memory_efficient_attention(query, query, query).sum().backward()
        except Exception as error:
            return f"its operator fails for heads of {width} ({brief(error)})"
    return None


def _head_widths(denoiser: nn.Module) -> set[Any]:
    return {
        module.inner_dim // module.heads  # pyright: ignore[reportOperatorIssue]
        for module in denoiser.modules()
        if isinstance(getattr(module, "heads", None), int) and hasattr(module, "inner_dim")
    }


def _use_xformers(denoiser: nn.Module) -> None:
    for module in denoiser.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):  # FLUX and later: a switch per processor
            processor._attention_backend = AttentionBackendName.XFORMERS
        elif isinstance(processor, AttnProcessor2_0 | JointAttnProcessor2_0):
            module.set_use_memory_efficient_attention_xformers(True)  # pyright: ignore


def _use_math(denoiser: nn.Module) -> None:
    """Run every forward, and its recomputation under checkpointing, on SDPA's math kernel."""
    entered: list[Any] = []

    def enter(module: nn.Module, arguments: Any) -> None:
        entered.append(sdpa_kernel(SDPBackend.MATH))
        entered[-1].__enter__()

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    denoiser.register_forward_pre_hook(enter)
    denoiser.register_forward_hook(leave, always_call=True)
