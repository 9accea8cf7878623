"""Text encoders: a small one trained along, a frozen published one, and features of texts."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<start>", "<end>")


def learn_words(captions: list[str], max_tokens: int, vocabulary: int = 4096) -> Any:
    """A byte-level BPE tokenizer learned from captions; any other text still tokenizes."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(captions, trainer)
    pad, start, end = SPECIAL
    words.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, words.token_to_id(token)) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        model_max_length=max_tokens,
    )


def small_encoder(words: Any, width: int, max_tokens: int) -> CLIPTextModel:
    """Two causal layers over the tokens of `words`, to be trained along."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=max_tokens,
        projection_dim=width,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return CLIPTextModel(config)


def frozen_encoder(name: str) -> tuple[Any, nn.Module]:
    """Tokenizer and encoder of a published T5 or CLIP text model, by folder or Hub id.

    Raises ValueError where it cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind not in ("t5", "clip", "clip_text_model"):
            raise ValueError(f"text_encoder {name!r} is a {kind} model; it must be T5 or CLIP")
        loader = T5EncoderModel if kind == "t5" else CLIPTextModel
        encoder = loader.from_pretrained(name)
        words = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"text_encoder {name!r} cannot be loaded: {reason}") from error
    return words, encoder.eval().requires_grad_(False)


def encode_texts(
    tokenizer: Any, text_encoder: Any, texts: list[str], max_tokens: int, masked: bool
) -> tuple[Float[Tensor, "b t c"], Bool[Tensor, "b t"] | None]:
    """Features of texts, padded or cut to `max_tokens`.

    With `masked`, padded features are zeroed and moved to the left, as the published
    text-to-image models expect, and the mask of the others is returned.
    """
    encoded = tokenizer(
        texts, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
    ).to(text_encoder.device)
    if not masked:
        return text_encoder(encoded.input_ids).last_hidden_state, None
    mask = encoded.attention_mask.bool()
    features = text_encoder(encoded.input_ids, attention_mask=encoded.attention_mask)
    features = features.last_hidden_state * mask[..., None]
    shifts = (~mask).sum(1).tolist()
    rolled = [torch.roll(row, shift, 0) for row, shift in zip(features, shifts, strict=True)]
    masks = [torch.roll(row, shift, 0) for row, shift in zip(mask, shifts, strict=True)]
    return torch.stack(rolled), torch.stack(masks)
