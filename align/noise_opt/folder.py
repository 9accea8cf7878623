"""One prompt's folder of an `align optimize` run, and who may work in it.

Everything is written whole or not at all; `result.json` comes last and says that the prompt is
done. A lock that ends with its process (`align.runs.files.claimed`) keeps two processes from the
same prompt.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from align.noise_opt.pictures import save_curves
from align.noise_opt.records import OptimizeStep
from align.runs.files import atomic_path, finite, write_json
from align.runs.folder import image_grid, save_image

GALLERY = 16  # pictures of the path
ALIKE = 0.02  # root mean square distance under which two images count as the same


def folder_of(run: Path, index: int) -> Path:
    return run / "prompts" / f"{index:04d}"


def result_of(run: Path, index: int, prompt: str) -> dict[str, Any] | None:
    """What a finished prompt's folder says, or None where it is not done.

    Raises ValueError where it is another prompt's.
    """
    path = folder_of(run, index) / "result.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["prompt"] != prompt:
        raise ValueError(
            f"{path.parent} is of the prompt {result['prompt']!r}, not {prompt!r}; "
            "resume with the same prompts, or give another --out"
        )
    return result


@dataclass
class PromptFolder:
    """Writes a search's steps as they come."""

    path: Path
    prompt: str
    seed: int
    settings: dict[str, Any]
    """Of the pictures: model, steps, guidance and so on."""
    keep: int = 1
    """How many of the best candidates to save."""
    path_images: list[Tensor] = field(default_factory=list)
    best: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)
    """(total, image, noise), best first."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    explored: list[float] = field(default_factory=list)

    def add(self, step: OptimizeStep) -> None:
        """Write what this step changes; the best so far is on the disk when it returns."""
        if step.iteration == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "history.jsonl").write_text("")
            self._image("initial.png", step.images[0])
            self.initial_total = float(step.totals[0])
            self.path_images.append(step.images[0].cpu())
        if step.improved:
            self._image("best.png", step.best_image)
            self._noise("noise.safetensors", step.best_noise)
            self.path_images.append(step.best_image.cpu())
        if step.phase == "explore":
            self.explored += step.totals.tolist()
        if self.keep > 1:
            self._remember(step)
        row = {
            "iteration": step.iteration,
            "phase": step.phase,
            "total": step.total,
            "terms": step.terms,
            "best_total": step.best_total,
            "candidates": step.totals.tolist(),
            "seconds": step.seconds,
            "generator_forwards": step.generator_forwards,
            "generator_backwards": step.generator_backwards,
            "reward_forwards": step.reward_forwards,
            **({"notes": step.notes} if step.notes else {}),
        }
        self.rows.append(row)
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")

    def finish(self, step: OptimizeStep) -> dict[str, Any]:
        """Write the pictures of the whole search and the result; returns it."""
        pictures = self.path_images
        if len(pictures) > GALLERY:
            shown = torch.linspace(0, len(pictures) - 1, GALLERY).round().int().tolist()
            pictures = [pictures[i] for i in shown]
        self._image("path.png", image_grid(torch.stack(pictures), columns=len(pictures)))
        save_curves(self.path / "curves.png", self.rows)
        others = [one for one in self.best if _distance(one[1], step.best_image) >= ALIKE]
        for rank, (_, image, noise) in enumerate(others[: self.keep - 1], start=2):
            self._image(f"best-{rank}.png", image)
            self._noise(f"noise-{rank}.safetensors", noise)
        result = {
            "prompt": self.prompt,
            "seed": self.seed,
            "initial_total": self.initial_total,
            "best_total": step.best_total,
            "best_terms": step.best_terms,
            "iterations": step.iteration + 1,
            "generator_forwards": step.generator_forwards,
            "generator_backwards": step.generator_backwards,
            "reward_forwards": step.reward_forwards,
            "explored": self.explored,
            "optimized": [r["best_total"] for r in self.rows if r["phase"] != "explore"],
            "notes": [note for row in self.rows for note in row.get("notes", ())],
        }
        write_json(self.path / "result.json", result)
        return result

    def _remember(self, step: OptimizeStep) -> None:
        """Keep the best candidates that do not look alike."""
        self._insert(step.best_total, step.best_image, step.best_noise)
        for total, image, noise in zip(step.totals, step.images, step.noises, strict=True):
            if float(total) < step.best_total:
                self._insert(float(total), image, noise)

    def _insert(self, total: float, image: Tensor, noise: Tensor) -> None:
        if len(self.best) == self.keep and total <= self.best[-1][0]:
            return
        alike = [i for i, one in enumerate(self.best) if _distance(one[1], image) < ALIKE]
        if any(self.best[i][0] >= total for i in alike):
            return
        kept = [one for i, one in enumerate(self.best) if i not in alike]
        kept.append((total, image.detach().clone(), noise.detach().clone()))
        self.best = sorted(kept, key=lambda one: -one[0])[: self.keep]

    def _image(self, name: str, image: Float[Tensor, "3 h w"]) -> None:
        save_image(self.path / name, image, prompt=self.prompt, seed=self.seed, **self.settings)

    def _noise(self, name: str, noise: Float[Tensor, "c h w"]) -> None:
        with atomic_path(self.path / name) as temporary:
            save_noise(temporary, noise, prompt=self.prompt, seed=self.seed)


def save_noise(path: Path, noise: Float[Tensor, "c h w"], *, prompt: str, seed: int) -> None:
    """A noise as `align generate --noise` reads it: key `noise`, float32 [1, c, h, w]."""
    tensor = noise.detach().float().cpu()[None].contiguous()
    save_file({"noise": tensor}, path, metadata={"prompt": prompt, "seed": str(seed)})


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())
