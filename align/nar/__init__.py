"""NAR: neighboring-autoregressive image and video generation (arXiv 2503.10696).

The public names are imported on first use, so that the command line can read the settings in
`align.config.nar` without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.nar.generate import generate_ids as generate_ids
    from align.nar.llamagen import LlamaGenTokenizer as LlamaGenTokenizer
    from align.nar.llamagen import load_llamagen_tokenizer as load_llamagen_tokenizer
    from align.nar.load import load_nar_pipeline as load_nar_pipeline
    from align.nar.model import NARTransformer2DModel as NARTransformer2DModel
    from align.nar.model import NARTransformer3DModel as NARTransformer3DModel
    from align.nar.pipeline import NARPipeline as NARPipeline
    from align.nar.pipeline import NARStep as NARStep
    from align.nar.reference import load_reference as load_reference
    from align.nar.scheduler import NARScheduler as NARScheduler
    from align.nar.tokenizer import ImageTokenizer as ImageTokenizer
    from align.nar.training.align import align_nar as align_nar
    from align.nar.training.tokenizer import train_tokenizer as train_tokenizer
    from align.nar.training.train import train_nar as train_nar
    from align.nar.video_pipeline import NARVideoPipeline as NARVideoPipeline
    from align.nar.video_pipeline import NARVideoStep as NARVideoStep
    from align.nar.video_tokenizer import VideoTokenizer as VideoTokenizer

_HOMES = {
    "ImageTokenizer": "align.nar.tokenizer",
    "LlamaGenTokenizer": "align.nar.llamagen",
    "NARPipeline": "align.nar.pipeline",
    "NARScheduler": "align.nar.scheduler",
    "NARStep": "align.nar.pipeline",
    "NARTransformer2DModel": "align.nar.model",
    "NARTransformer3DModel": "align.nar.model",
    "NARVideoPipeline": "align.nar.video_pipeline",
    "NARVideoStep": "align.nar.video_pipeline",
    "VideoTokenizer": "align.nar.video_tokenizer",
    "align_nar": "align.nar.training.align",
    "generate_ids": "align.nar.generate",
    "load_nar_pipeline": "align.nar.load",
    "load_llamagen_tokenizer": "align.nar.llamagen",
    "load_reference": "align.nar.reference",
    "train_nar": "align.nar.training.train",
    "train_tokenizer": "align.nar.training.tokenizer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'align.nar' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
