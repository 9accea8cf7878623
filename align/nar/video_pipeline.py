"""`NARVideoPipeline`: clips from prompts or classes, a wavefront of the 3-D grid at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from align.nar.model import NARTransformer3DModel
from align.nar.pipeline import OUTPUT_TYPES, NARPipeline
from align.nar.scheduler import NARScheduler
from align.nar.video_tokenizer import VideoTokenizer


@dataclass
class NARVideoPipelineOutput(BaseOutput):
    """`frames`: a list of lists of PIL images, or an array or tensor `[batch, frames, …]`."""

    frames: list[list[Image.Image]] | np.ndarray | Tensor


@dataclass(frozen=True)
class NARVideoStep:
    """What `NARVideoPipeline.stream` yields after each forward pass.

    `ids` are all tokens in raster order (time, rows, columns), -1 where still unknown; `frames`
    `[batch, frames, 3, height, width]` in [0, 1] is the clip so far, grey where unknown.
    """

    index: int
    ids: Int[Tensor, "b n"]
    frames: Float[Tensor, "b t 3 h w"]

    @property
    def image(self) -> Float[Tensor, "b 3 h w2"]:
        """The frames side by side."""
        return filmstrip(self.frames)


def filmstrip(frames: Float[Tensor, "b t 3 h w"]) -> Float[Tensor, "b 3 h w2"]:
    """The frames of each clip side by side, as one picture."""
    return frames.permute(0, 2, 3, 1, 4).flatten(3)


class NARVideoPipeline(NARPipeline):
    """Class- or text-conditional clips.

    Args:
        transformer: the token model, of a grid of (time, rows, columns).
        video_tokenizer: its grid and codebook must be the transformer's.
        scheduler: the default sampling settings.
        tokenizer, text_encoder: of a text-conditional model; None for a class-conditional one.
        id2label: names of the classes, a dictionary by number.

    Raises:
        ValueError: the transformer does not fit the video tokenizer.
    """

    model_cpu_offload_seq = "text_encoder->transformer->video_tokenizer"

    def __init__(
        self,
        transformer: NARTransformer3DModel,
        video_tokenizer: VideoTokenizer,
        scheduler: NARScheduler,
        tokenizer: Any = None,
        text_encoder: Any = None,
        id2label: Any = None,
    ):
        DiffusionPipeline.__init__(self)
        grid, codes = tuple(transformer.grid_shape), transformer.config.vocab_size
        if grid != tuple(video_tokenizer.grid_shape) or codes != video_tokenizer.codebook_size:
            raise ValueError(
                f"the transformer's grid {grid} of {codes} codes does not match the video "
                f"tokenizer's {tuple(video_tokenizer.grid_shape)} of "
                f"{video_tokenizer.codebook_size}"
            )
        self.register_modules(
            transformer=transformer,
            video_tokenizer=video_tokenizer,
            scheduler=scheduler,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
        )
        labels = {str(key): name for key, name in (id2label or {}).items()}
        self.register_to_config(id2label=labels or None)
        self._interrupt = False

    def stream(self, *arguments: Any, **settings: Any) -> Iterator[NARVideoStep]:  # pyright: ignore
        """Yield the clip so far after every wavefront; arguments as for `__call__`."""
        for front in self.wavefronts(*arguments, **settings):
            yield NARVideoStep(front.index, front.ids, self.preview(front.ids))

    @torch.no_grad()
    def preview(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b t 3 h w"]:  # pyright: ignore
        """The clip of token ids, grey where they are unknown (-1)."""
        frames = self.video_tokenizer.decode(ids.clamp(min=0))
        known = (ids >= 0).view(len(ids), 1, *self.transformer.grid_shape).float()
        size = (frames.shape[1], *frames.shape[-2:])
        known = F.interpolate(known, size=size, mode="nearest").transpose(1, 2)
        return torch.where(known > 0, frames, torch.tensor(0.5, device=frames.device))

    def check_size(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> None:
        """ValueError where a clip of another length or size is asked for than the model draws."""
        c = self.video_tokenizer.config
        own = (c.num_frames, *c.image_size)
        given = zip((num_frames, height, width), own, strict=True)
        asked = tuple(default if side is None else side for side, default in given)
        if asked != own:
            raise ValueError(
                f"a clip of {asked[0]} frames of {asked[1]}x{asked[2]} was asked for; this model "
                f"draws {own[0]} frames of {own[1]}x{own[2]}"
            )

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *arguments: Any,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **settings: Any,
    ) -> NARVideoPipelineOutput | tuple:
        """Generate clips.

        Args:
            arguments, settings: prompt or class_labels, and the further ones of
                `NARPipeline.__call__`.
            num_frames, height, width: None, or what the model draws.
            output_type: "pil" (a list of frames a clip), "pt" (`[batch, frames, 3, height,
                width]` in [0, 1]), "np" (channels last) or "latent" (token ids in raster order).

        Raises:
            ValueError, TypeError: a setting, size, prompt or token that is not allowed.
        """
        if output_type not in OUTPUT_TYPES:
            allowed = ", ".join(OUTPUT_TYPES)
            raise ValueError(f"output_type {output_type!r}: must be one of {allowed}")
        self.check_size(num_frames, height, width)
        latent: dict[str, Any] = {"output_type": "latent", "return_dict": False}
        ids = super().__call__(*arguments, **latent, **settings)[0]
        clips = self._frames(ids, output_type)
        return NARVideoPipelineOutput(frames=clips) if return_dict else (clips,)

    def _frames(self, ids: Int[Tensor, "b n"], output_type: str) -> Any:
        if output_type == "latent":
            return ids
        frames = self.preview(ids)
        if output_type == "pt":
            return frames
        array = frames.permute(0, 1, 3, 4, 2).cpu().numpy()
        if output_type == "np":
            return array
        return [VaeImageProcessor.numpy_to_pil(clip) for clip in array]
