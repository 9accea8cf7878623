"""What a NAR model accepts: sizes, conditions and token ids, each refused in one sentence."""

from typing import Any

from torch import Tensor

from align.nar.grid import ORDERS

_CHOICES = {
    "condition": ("class", "text"),
    "fusion": ("mean", "scalar", "gate"),
    "position": ("rope", "learned"),
    "cond_rope": ("zero", "identity"),
    "null_mask": ("prompt", "full"),
    "decoding": tuple(ORDERS),
}


def check_config(config: Any) -> None:
    """ValueError unless the settings of a model fit each other."""
    for name, allowed in _CHOICES.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} {config[name]!r}: must be one of {', '.join(allowed)}")
    width, heads, layers = config["width"], config["num_heads"], config["num_layers"]
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} must be an even multiple of num_heads {heads}")
    if not 0 <= config["branch_depth"] <= layers:
        raise ValueError(f"branch_depth {config['branch_depth']}: must be 0 to num_layers {layers}")


def check_condition(model: Any, condition: Tensor, mask: Tensor | None = None) -> None:
    """ValueError or TypeError unless the condition is what the model was built for."""
    config = model.config
    if config.condition == "class":
        if condition.is_floating_point() or condition.ndim != 1:
            raise TypeError(
                f"a class condition is an int64 tensor [batch], got {condition.dtype} "
                f"{list(condition.shape)}"
            )
        low, high = int(condition.min()), int(condition.max())
        if low < 0 or high > config.num_classes:
            raise ValueError(
                f"class {low if low < 0 else high} is out of range: 0 to "
                f"{config.num_classes - 1} ({config.num_classes} stands for no class)"
            )
        return
    tokens, width = model.num_condition_tokens, config.condition_width
    if not condition.is_floating_point() or tuple(condition.shape[1:]) != (tokens, width):
        raise ValueError(
            f"a text condition is a float tensor [batch, {tokens}, {width}], got "
            f"{condition.dtype} {list(condition.shape)}"
        )
    if mask is not None and tuple(mask.shape) != tuple(condition.shape[:2]):
        raise ValueError(f"condition mask {list(mask.shape)}: must be {list(condition.shape[:2])}")


def check_ids(model: Any, ids: Tensor, lowest: int = 0) -> None:
    """ValueError unless `ids` are [batch, tokens] codes, at least `lowest`."""
    tokens, codes = model.order.num_tokens, model.config.vocab_size
    if ids.is_floating_point() or ids.ndim != 2 or ids.shape[1] != tokens:
        raise ValueError(
            f"token ids must be int64 [batch, {tokens}] for a grid of {model.grid_shape}, got "
            f"{ids.dtype} {list(ids.shape)}"
        )
    low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (lowest, lowest)
    if low < lowest or high >= codes:
        bad = low if low < lowest else high
        raise ValueError(f"token id {bad} is outside the codebook: 0 to {codes - 1}")


def check_fit(transformer: Any, image_tokenizer: Any) -> None:
    """ValueError unless the token grids and codebooks of the two agree."""
    if tuple(transformer.grid_shape) != tuple(image_tokenizer.grid_shape):
        raise ValueError(
            f"the transformer's grid {tuple(transformer.grid_shape)} does not match the image "
            f"tokenizer's {tuple(image_tokenizer.grid_shape)}"
        )
    codes = image_tokenizer.codebook_size
    if transformer.config.vocab_size != codes:
        raise ValueError(
            f"the transformer predicts {transformer.config.vocab_size} codes, the image "
            f"tokenizer has {codes}"
        )
