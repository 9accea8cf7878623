"""Tiny weights of the judges that answer questions or find objects, as published."""

from pathlib import Path

import torch
from tiny_mask2former import mask2former, to_mmdet
from tiny_qwen import save_hpsv3, save_qwen

from align.rewards.catalogue import MASK2FORMER


def install_judges(folder: Path) -> None:
    for size in ("2B", "8B"):
        save_qwen(folder / f"Qwen/Qwen3-VL-{size}-Instruct")
    file = folder / MASK2FORMER.repo / MASK2FORMER.files[0]
    file.parent.mkdir(parents=True)
    torch.save({"meta": {"epoch": 50}, "state_dict": to_mmdet(mask2former())}, file)
    save_hpsv3(folder)
