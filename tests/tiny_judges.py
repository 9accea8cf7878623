"""Tiny weights of the judges that answer questions or find objects, as published."""

from pathlib import Path

from tiny_qwen import save_qwen


def install_judges(folder: Path) -> None:
    save_qwen(folder / "Qwen/Qwen3-VL-2B-Instruct")
