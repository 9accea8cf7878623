"""Prompt embeddings of a run: made once each, with the text encoders out of the way after."""

import gc
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align.config.train import TrainConfig
from align.diffusion.denoisers import encode_prompts
from align.diffusion.families.family import Embeds, cat_rows

REMEMBERED = 4 * 2**30  # bytes of main memory, where not all prompts are kept


class Embeddings:
    """Prompts to embeddings, by name and batch first, which remembers those it has made.

    Each prompt is encoded by itself, so that its embedding does not depend on its neighbors, not
    even in the last bit. With `offload` the text encoders wait on the CPU.
    """

    def __init__(self, config: TrainConfig, pipe: Any, device: torch.device):
        self.config, self.pipe, self.device = config, pipe, device
        self.made: dict[str, Embeds] = {}
        self.negative: Embeds = {}  # one copy, the same for every prompt
        self.bytes = 0
        self.all_kept = False

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The embeddings of these prompts, on the run's device."""
        rows = cat_rows([self._one(prompt) for prompt in prompts])
        return {name: row.to(self.device) for name, row in rows.items()}

    def keep(self, prompts: Iterable[str]) -> None:
        """Encode all prompts of a run, to main memory, and take the encoders out of the pipeline.

        From then on there are no other prompts.
        """
        self.all_kept = True
        for prompt in dict.fromkeys(prompts):
            self._one(prompt)
        for name in self._encoders():
            setattr(self.pipe, name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _one(self, prompt: str) -> Embeds:
        if prompt in self.made:
            return self.made[prompt] | self.negative
        encoders = self._encoders()
        if not encoders:
            raise ValueError(f"prompt {prompt!r} was not encoded before the text encoders went")
        moved = encoders.values() if self.config.offload else ()
        for encoder in moved:
            encoder.to(self.device)
        embeds = encode_prompts(
            self.pipe,
            prompt,
            negative_prompts=self.config.negative_prompt,
            guidance_scale=self.config.guidance_scale,
        )
        for encoder in moved:
            encoder.to("cpu")
        own = {k: row.to("cpu") for k, row in embeds.items() if not k.startswith("negative_")}
        for name in embeds.keys() - own.keys() - self.negative.keys():
            self.negative[name] = embeds[name].to("cpu")
        self.bytes += _size(own)
        while self.made and self.bytes > REMEMBERED and not self.all_kept:
            self.bytes -= _size(self.made.pop(next(iter(self.made))))
        # In main memory: a thousand of FLUX's would take four gigabytes of a card.
        self.made[prompt] = own
        return own | self.negative

    def _encoders(self) -> dict[str, nn.Module]:
        return {
            name: part
            for name, part in self.pipe.components.items()
            if name.startswith("text_encoder") and isinstance(part, nn.Module)
        }


def _size(rows: Embeds) -> int:
    return sum(row.nbytes for row in rows.values())
