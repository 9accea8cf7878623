"""`NARPipeline`: token transformer, image tokenizer and text encoder as a diffusers pipeline."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from jaxtyping import Bool, Float, Int
from torch import Tensor

from align.nar.checks import check_fit
from align.nar.generate import Wavefront, decode
from align.nar.llamagen import LlamaGenTokenizer
from align.nar.model import NARTransformer2DModel
from align.nar.scheduler import NARScheduler, changed_scheduler, draw_uniforms
from align.nar.text import encode_texts
from align.nar.tokenizer import ImageTokenizer

POLICY_KEY = "nar_policy"  # in a LoRA's metadata: the sampling it was trained for, as JSON
OUTPUT_TYPES = ("pil", "pt", "np", "latent")
Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class NARStep:
    """What `NARPipeline.stream` yields after each forward pass.

    `ids` are all tokens in raster order, -1 where still unknown; `image` `[batch, 3, height,
    width]` in [0, 1] is the picture so far, grey where unknown.
    """

    index: int
    ids: Int[Tensor, "b n"]
    image: Float[Tensor, "b 3 h w"]


def trained_policy(loras: str | Sequence[str]) -> dict[str, Any]:
    """The settings of sampling that LoRAs were trained for: those of the last that says any.

    Args:
        loras: files, folders, runs or Hub ids of LoRAs, each with an optional =WEIGHT.

    Returns:
        guidance_scale, temperature, top_k and top_p as `NARScheduler` takes them; empty where no
        LoRA says them.

    Raises FileNotFoundError where a LoRA is missing, ValueError where one cannot be read.
    """
    from align.models.lora_files import find_lora, parse_lora, read_tensors

    policy: dict[str, Any] = {}
    for source in [loras] if isinstance(loras, str) else loras:
        _, metadata = read_tensors(find_lora(parse_lora(source)[0]))
        policy = json.loads(metadata[POLICY_KEY]) if POLICY_KEY in metadata else policy
    return policy


class NARPipeline(DiffusionPipeline):
    """Class- or text-conditional pictures, decoded a wavefront at a time.

    Args:
        transformer: the token model.
        image_tokenizer: an `ImageTokenizer` or `LlamaGenTokenizer`; grids and codebooks must agree.
        scheduler: the default sampling settings.
        tokenizer, text_encoder: of a text-conditional model; None for a class-conditional one.
        id2label: names of the classes, a dictionary by number.

    Raises:
        ValueError: the transformer does not fit the image tokenizer.
    """

    config: Any
    progress_bar: Any
    model_cpu_offload_seq = "text_encoder->transformer->image_tokenizer"
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012
    _callback_tensor_inputs = ["ids"]  # noqa: RUF012

    def __init__(
        self,
        transformer: NARTransformer2DModel,
        image_tokenizer: ImageTokenizer | LlamaGenTokenizer,
        scheduler: NARScheduler,
        tokenizer: Any = None,
        text_encoder: Any = None,
        id2label: Any = None,
    ):
        super().__init__()
        check_fit(transformer, image_tokenizer)
        self.register_modules(
            transformer=transformer,
            image_tokenizer=image_tokenizer,
            scheduler=scheduler,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
        )
        labels = {str(key): name for key, name in (id2label or {}).items()}
        self.register_to_config(id2label=labels or None)
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a folder, a Hub id, or a model shipped with the package (`embedded/NAME`)."""
        name = str(pretrained_model_name_or_path)
        if name.startswith("embedded/"):
            folder = Path(__file__).parents[1] / name
            if not (folder / "model_index.json").is_file():
                raise FileNotFoundError(f"there is no model {name}")
            # shipped in half precision, run in single
            name, kwargs = str(folder), {"dtype": torch.float32, **kwargs}
        return super().from_pretrained(name, **kwargs)

    def load_lora(self, loras: str | Sequence[str]) -> None:
        """Add the weighted sum of LoRAs to the weights: files, folders, runs or Hub ids, =WEIGHT.

        The scheduler's settings become those of the policy that the last of them was trained as.

        Raises FileNotFoundError where one is missing, ValueError where it fits another model.
        """
        from align.models.lora import load_lora, merge_lora  # peft takes a second to import

        load_lora(self, loras)
        merge_lora(self)
        if policy := trained_policy(loras):
            self.scheduler = changed_scheduler(self.scheduler, policy)

    # --- conditions ----------------------------------------------------------------------------

    def class_ids(self, class_labels: int | str | list[int | str]) -> list[int]:
        """Class numbers of names or numbers (also written as text)."""
        labels = class_labels if isinstance(class_labels, list | tuple) else [class_labels]
        names = {name: int(key) for key, name in (self.config.id2label or {}).items()}
        for label in labels:
            if isinstance(label, str) and label not in names and not label.isdigit():
                known = ", ".join(names) or "numbers only"
                raise ValueError(f"unknown class {label!r}: known are {known}")
        return [names[label] if label in names else int(label) for label in labels]

    def encode_prompt(
        self, prompts: list[str]
    ) -> tuple[Float[Tensor, "b t c"], Bool[Tensor, "b t"] | None]:
        """Text features of prompts, and their padding mask where the model uses one."""
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise TypeError(f"a prompt is a str, got {type(prompt).__name__}")
            if not prompt.strip():
                raise ValueError("the prompt is empty: say what to draw")
        return encode_texts(
            self.tokenizer,
            self.text_encoder,
            prompts,
            self.transformer.num_condition_tokens,
            self.transformer.config.use_condition_mask,
        )

    def conditions(
        self, prompt: Any, class_labels: Any, copies: int
    ) -> tuple[Tensor, Tensor | None]:
        """What the transformer reads of prompts or labels, each `copies` times, and its mask."""
        wants_text = self.transformer.config.condition == "text"
        if wants_text and (prompt is None or class_labels is not None):
            raise ValueError("this model is text-conditional: give `prompt`, not `class_labels`")
        if not wants_text and (class_labels is None or prompt is not None):
            raise ValueError("this model is class-conditional: give `class_labels`, not `prompt`")
        if copies < 1:
            raise ValueError(f"num_images_per_prompt {copies}: must be at least 1")
        if class_labels is not None:
            ids = torch.tensor(self.class_ids(class_labels), device=self.transformer.device)
            return ids.repeat_interleave(copies), None
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        if not prompts:
            raise ValueError("there is no prompt: give at least one")
        with torch.no_grad():
            features, mask = self.encode_prompt(prompts)
        features = features.to(self.transformer.device).repeat_interleave(copies, 0)
        return features, None if mask is None else mask.repeat_interleave(copies, 0)

    # --- decoding ------------------------------------------------------------------------------

    def wavefronts(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int | str] | None = None,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        num_images_per_prompt: int = 1,
        given_ids: Int[Tensor, "b n"] | None = None,
    ) -> Iterator[Wavefront]:
        """Decode token ids only; None takes the scheduler's own setting."""
        changed = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        changed = {key: value for key, value in changed.items() if value is not None}
        scheduler = changed_scheduler(self.scheduler, changed)
        condition, mask = self.conditions(prompt, class_labels, num_images_per_prompt)
        batch, count = len(condition), self.transformer.order.num_tokens
        if given_ids is not None:
            given_ids = given_ids.to(condition.device).expand(batch, -1)
        uniforms = draw_uniforms(batch, count, generator, condition.device)
        return decode(
            self.transformer,
            condition,
            scheduler,
            condition_mask=mask,
            uniforms=uniforms,
            given_ids=given_ids,
        )

    def stream(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int | str] | None = None,
        **settings: Any,
    ) -> Iterator[NARStep]:
        """Yield the picture so far after every wavefront; settings as for `__call__`."""
        for front in self.wavefronts(prompt, class_labels, **settings):
            yield NARStep(front.index, front.ids, self.preview(front.ids))

    @torch.no_grad()
    def preview(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """The picture of token ids, grey where they are unknown (-1)."""
        image = self.image_tokenizer.decode(ids.clamp(min=0))
        known = (ids >= 0).view(len(ids), 1, *self.transformer.grid_shape).float()
        known = F.interpolate(known, size=image.shape[-2:], mode="nearest")
        return torch.where(known > 0, image, torch.tensor(0.5, device=image.device))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int | str] | None = None,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        num_images_per_prompt: int = 1,
        given_ids: Int[Tensor, "b n"] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Generate pictures.

        Args:
            prompt: of a text-conditional model.
            class_labels: numbers or names, of a class-conditional model.
            guidance_scale: at least 1 (1 is none); temperature, top_k, top_p as in
                `NARScheduler`. None takes the scheduler's own.
            generator: one, or one per picture.
            num_images_per_prompt: pictures per prompt or label, next to each other.
            given_ids: `[1 or batch, tokens]` tokens to keep, -1 where free.
            output_type: "pil", "pt" (`[batch, 3, height, width]` in [0, 1]), "np" (channels
                last) or "latent" (token ids in raster order).
            callback_on_step_end: called as f(pipe, index, index, {"ids": ids}) after every
                forward pass; setting `pipe._interrupt = True` there stops.

        Raises:
            ValueError, TypeError: a setting, prompt or token that is not allowed.
        """
        if output_type not in OUTPUT_TYPES:
            allowed = ", ".join(OUTPUT_TYPES)
            raise ValueError(f"output_type {output_type!r}: must be one of {allowed}")
        self._interrupt = False
        fronts = self.wavefronts(
            prompt,
            class_labels,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            num_images_per_prompt=num_images_per_prompt,
            given_ids=given_ids,
        )
        ids = torch.empty(0)
        with self.progress_bar(total=self.transformer.order.num_passes) as progress:
            for front in fronts:
                ids = front.ids
                if callback_on_step_end is not None:
                    callback_on_step_end(self, front.index, front.index, {"ids": ids})
                progress.update()
                if self._interrupt:
                    break
        images = self._output(ids, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _output(self, ids: Int[Tensor, "b n"], output_type: str) -> Any:
        if output_type == "latent":
            return ids
        images = self.preview(ids)
        if output_type == "pt":
            return images
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)
