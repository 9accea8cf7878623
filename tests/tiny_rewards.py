"""Tiny weights of every published reward, in the layouts in which they are published.

`install(folder)` writes them as `ALIGN_WEIGHTS` wants them: OWNER/NAME/FILE. Weights are from
`formula.weights`, original files' key names those of the references (`tests/golden/rewards/`).
"""

import json
from pathlib import Path

import pytest
import torch
from formula import weights
from safetensors.torch import save_file
from tiny import clip_tokenizer
from tiny_nsfw import install_nsfw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    OwlViTConfig,
    OwlViTForObjectDetection,
    PreTrainedTokenizerFast,
    YolosConfig,
    YolosForObjectDetection,
)

from align.rewards import load_reward

GOLDEN = Path(__file__).parent / "golden" / "rewards"
PROMPTS = ("a red cube", "two dogs and a cat")
WINDOW = 24  # tokens that the tiny CLIP reads
VOCABULARY = 514  # of `clip_tokenizer`

OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8,
    },
    "text_cfg": {
        "context_length": WINDOW, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip
CLIP_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": WINDOW,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": VOCABULARY - 1,
}
SMALL_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLIP_VISION = SMALL_VISION | {"num_hidden_layers": 3}
CLIP = {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 16}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "yes", "no", "a", "red",
         "cube", "two", "dogs", "dog", "and", "cat", "is", "there", "are", "exactly", "?", "an",
         *"bcdefghijklmnopqrstuvwxyz",
         *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
BLIP = {
    "text_config": {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "bos_token_id": WORDS.index("[DEC]"),
        "eos_token_id": WORDS.index("[SEP]"),
        "sep_token_id": WORDS.index("[SEP]"),
        "pad_token_id": 0,
    },
    "vision_config": SMALL_VISION,
    "image_text_hidden_size": 16,
    "projection_dim": 16,
}
IMAGE_REWARD = {
    "vision": {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1},
    "text": {
        "vocab_size": len(WORDS),
        "hidden_size": 128,
        "encoder_width": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
    },
}
T5 = {
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 16,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
T5_WORDS = [
    "<pad>", "</s>", "<unk>", "\u2581", "Yes", "\u2581Yes", *(chr(c) for c in range(33, 127)), "\n"
]  # fmt: skip
T5_ROWS = len(T5_WORDS) + 5  # as published, more embeddings than words
OWLVIT = {
    "text_config": CLIP_TEXT | {"max_position_embeddings": 40},
    "vision_config": CLIP_VISION | {"image_size": 48, "patch_size": 12},
    "projection_dim": 32,
}
YOLOS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": [32, 48],
    "patch_size": 8,
    "num_detection_tokens": 10,
    "use_mid_position_embeddings": False,
    "id2label": {0: "cat", 1: "dog", 2: "cube"},
    "label2id": {"cat": 0, "dog": 1, "cube": 2},
}


def shapes(model) -> dict:
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def filled(model):
    """The model with weights from the formula."""
    made = weights(shapes(model))
    for alias, key in (model.all_tied_weights_keys or {}).items():
        made[alias] = made[key]
    model.load_state_dict(made)
    return model.eval()


def clip_model() -> CLIPModel:
    return filled(CLIPModel(CLIPConfig(**CLIP)))


def blip_model() -> BlipForQuestionAnswering:
    return filled(BlipForQuestionAnswering(BlipConfig(**BLIP)))


def owlvit_model() -> OwlViTForObjectDetection:
    return filled(OwlViTForObjectDetection(OwlViTConfig(**OWLVIT)))


def yolos_model() -> YolosForObjectDetection:
    return filled(YolosForObjectDetection(YolosConfig(**YOLOS)))


def golden(name: str) -> dict:
    """What a script in `scripts/golden/` wrote about a reward's reference."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def original_weights(name: str) -> dict:
    """Weights under the key names of a reference package."""
    return weights(golden(name)["shapes"])


def save_clip_words(folder: Path) -> None:
    """CLIP's tokenizer as it is published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_tokenizer().get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def save_model(model, folder: Path) -> None:
    model.save_pretrained(folder)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like Flan-T5's: pieces with a mark for blanks, an end token after each text."""
    scores = [(word, -1.0 if len(word) > 1 else -2.0) for word in T5_WORDS]
    backend = Tokenizer(models.Unigram(scores, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def install(folder: Path) -> Path:
    """Write every reward's tiny weights below `folder`, which becomes `ALIGN_WEIGHTS`."""
    clip = clip_model()
    for repo in (
        "openai/clip-vit-large-patch14",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "yuvalkirstain/PickScore_v1",
        "openai/clip-vit-large-patch14-336",
    ):
        save_model(clip, folder / repo)
        save_clip_words(folder / repo)
    for name in ("aesthetic-v1", "aesthetic-v2"):
        save_head(name, folder)
    install_nsfw(folder, clip.config.projection_dim)
    for version in ("HPS_v2", "HPS_v2.1"):
        save_hps(folder / "xswu/HPSv2" / f"{version}_compressed.pt")
    save_image_reward(folder / "THUDM/ImageReward" / "ImageReward.pt")
    save_bert_words(folder / "bert-base-uncased")
    (folder / "RE-N-Y/mpsv1").mkdir(parents=True)
    save_tensors(original_weights("mps"), folder / "RE-N-Y/mpsv1/model.safetensors")
    save_model(blip_model(), folder / "Salesforce/blip-vqa-base")
    save_bert_words(folder / "Salesforce/blip-vqa-base")
    save_model(owlvit_model(), folder / "google/owlvit-base-patch32")
    save_clip_words(folder / "google/owlvit-base-patch32")
    save_model(yolos_model(), folder / "hustvl/yolos-tiny")
    save_clip_t5(folder / "zhiqiulin/clip-flant5-xl")
    t5_tokenizer().save_pretrained(folder / "google/flan-t5-xl")
    from tiny_judges import install_judges  # it takes `filled` from here

    install_judges(folder)
    return folder


def save_bert_words(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))


def save_head(name: str, folder: Path) -> None:
    files = {
        "aesthetic-v1": "LAION-AI/aesthetic-predictor/sa_0_4_vit_l_14_linear.pth",
        "aesthetic-v2": "christophschuhmann/improved-aesthetic-predictor/"
        "sac+logos+ava1-l14-linearMSE.pth",
    }
    path = folder / files[name]
    path.parent.mkdir(parents=True)
    torch.save(weights(golden(name)["head"]), path)


def save_hps(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": original_weights("hps")}, path)
    (path.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))


def save_image_reward(path: Path) -> None:
    path.parent.mkdir(parents=True)
    torch.save(original_weights("image-reward"), path)


def save_clip_t5(folder: Path) -> None:
    """CLIP-FlanT5 in two shards with an index, as published."""
    folder.mkdir(parents=True)
    made = original_weights("vqascore")
    config = T5 | {"model_type": "clip_t5", "vocab_size": T5_ROWS}
    (folder / "config.json").write_text(json.dumps(config))
    keys = list(made)
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    shards = dict(zip(names, (keys[: len(keys) // 2], keys[len(keys) // 2 :]), strict=True))
    for name, part in shards.items():
        torch.save({key: made[key] for key in part}, folder / name)
    index = {key: name for name, part in shards.items() for key in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def save_tensors(tensors: dict, path: Path) -> None:
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)


NETWORKS = ("aesthetic", "aesthetic:v1", "blip-vqa", "clip", "da-score", "hps", "hps:2.0",
            "image-reward", "mps", "pickscore", "vqascore")  # fmt: skip
JUDGES = ("vlm",)  # with a gradient; their references are in tests of their own
DETECTORS = ("detector", "detector:remove=dog", "detector:count=cube:2",
             "detector:model=hustvl/yolos-tiny", "detector:present=cat;model=hustvl/yolos-tiny",
             "detector:count=dog:3;model=hustvl/yolos-tiny")  # fmt: skip


@pytest.fixture(scope="module")
def installed_weights(tmp_path_factory):
    """Tiny weights of every reward where `align fetch` would put them; import it by this name."""
    folder = install(tmp_path_factory.mktemp("weights"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_WEIGHTS", str(folder))
        patch.setenv("HF_HUB_CACHE", str(folder / "none"))
        yield folder


@pytest.fixture(scope="module")
def loader(installed_weights):
    """`load_reward`, each expression once."""
    known = {}

    def cached(expression: str):
        if expression not in known:
            known[expression] = load_reward(expression)
        return known[expression]

    return cached
