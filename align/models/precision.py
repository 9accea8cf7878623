"""Whether half precision makes a device faster."""

import functools
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 matrices are faster than float32 ones on "cpu", "cuda" or "mps".

    A CPU without bfloat16 instructions emulates them, many times slower than float32.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(False)
    if device != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def autocast(device: str) -> Any:
    """bfloat16 autocast where it is faster, else nothing."""
    return torch.autocast(device, torch.bfloat16, enabled=fast_bfloat16(device))


@functools.cache
def warn_of_emulation(device: str, dtype: torch.dtype) -> None:
    """Say once that a CPU has no instructions for this half precision."""
    if device == "cpu" and dtype == torch.bfloat16 and not fast_bfloat16(device):
        logger.warning(
            "this CPU emulates bfloat16, many times slower than float32: leave --dtype out"
        )
