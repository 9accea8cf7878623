"""Scores of the reference packages on tiny weights: the golden numbers of tests/test_published.py.

    python scripts/golden/inputs.py                         # in this project's environment
    python scripts/golden/reference.py [NAME …]             # in an environment of its own, with

    pip install torch torchvision "transformers==4.44.2" "timm==0.6.13" fairscale einops \
        sentencepiece
    pip install --no-deps image-reward hpsv2x simple-aesthetics-predictor t2v-metrics==3.0 \
        imscore==0.0.11

Weights and pictures come from the formula in tests/formula.py, so that only names, shapes and
scores are stored. Of a package just the files that score are imported: what its `__init__` pulls in
besides (downloaders, video readers) has no part in a score.

Each file has `shapes` (the reference's own key names), `scores` of pictures of the tower's size, as
tensors, and `scores_pil` of larger ones through the reference's own preprocessing. The stored
numbers were made with a stand-in for torchvision, which has no build for this torch: Pillow for
pictures, `torch.nn.functional.interpolate(antialias=True)` for tensors, as torchvision itself.
"""

import importlib
import itertools
import json
import sys

import torch
from clips import aesthetic, clip, hps, mps
from common import GOLDEN, IN, MEAN, STD, bare, ids, large, load, small
from formula import pictures
from PIL import Image


@torch.no_grad()
def image_reward() -> dict:
    bare("ImageReward", "ImageReward.models", "ImageReward.models.BLIP")
    from ImageReward.models.BLIP.med import BertConfig, BertModel
    from ImageReward.models.BLIP.vit import VisionTransformer
    from torchvision.transforms import (  # fmt: skip
        CenterCrop,
        Compose,
        InterpolationMode,
        Normalize,
        Resize,
        ToTensor,
    )

    class Blip(torch.nn.Module):
        """The parts of `BLIP_Pretrain` at a tiny size; its own has published sizes only."""

        def __init__(self):
            super().__init__()
            self.visual_encoder = VisionTransformer(**IN["image_reward"]["vision"])
            config = BertConfig(**IN["image_reward"]["text"], add_cross_attention=True)
            config.encoder_width = IN["image_reward"]["text"]["encoder_width"]
            self.text_encoder = BertModel(config=config, add_pooling_layer=False)
            self.vision_proj = torch.nn.Linear(64, 8)
            self.text_proj = torch.nn.Linear(128, 8)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blip = Blip()
            sizes = (IN["image_reward"]["text"]["hidden_size"], 1024, 128, 64, 16, 1)
            linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
            self.mlp = torch.nn.Module()
            drop = torch.nn.Dropout(0.1)
            self.mlp.layers = torch.nn.Sequential(
                linear[0], drop, linear[1], drop, linear[2], drop, linear[3], linear[4]
            )

    model = Whole()
    shapes = load(model)
    text = ids([row + [0] * (35 - len(row)) for row in IN["bert_ids"]], 0)
    mask = (text != 0).long()

    def score(pixels: torch.Tensor) -> list[float]:
        seen = model.blip.visual_encoder(pixels)
        out = model.blip.text_encoder(
            text, attention_mask=mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long), return_dict=True,
        )  # fmt: skip
        rewards = model.mlp.layers(out.last_hidden_state[:, 0].float())
        return ((rewards - 0.16717362830052426) / 1.0333394966054072).squeeze(-1).tolist()

    view = Compose([
        Resize(32, interpolation=InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(),
        Normalize(MEAN.flatten().tolist(), STD.flatten().tolist()),
    ])  # fmt: skip
    pil = torch.stack([view(one) for one in large()])
    return {"shapes": shapes, "scores": score((small() - MEAN) / STD), "scores_pil": score(pil)}


@torch.no_grad()
def blip() -> dict:
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor

    model = BlipForQuestionAnswering(BlipConfig(**IN["blip"]))
    load(model)
    # Tied in the published weights, and by newer versions of transformers.
    decoder = model.text_decoder
    embeddings = decoder.bert.embeddings.word_embeddings
    decoder.cls.predictions.decoder.weight.copy_(embeddings.weight)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    yes, no = IN["yes_no"]

    def logits(pixels: torch.Tensor, question: list[int]) -> torch.Tensor:
        out = model.generate(
            input_ids=torch.tensor([question]), pixel_values=pixels[None],
            attention_mask=torch.ones(1, len(question), dtype=torch.long), max_new_tokens=1,
            min_new_tokens=0, num_beams=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return out.logits[0][0]

    def score(pictures: torch.Tensor) -> dict:
        phrases, assertions = [], []
        for pixels, asked, facts in zip(
            pictures, IN["phrase_ids"], IN["assertion_ids"], strict=True
        ):
            pairs = [logits(pixels, q)[[yes, no]].softmax(-1)[0] for q in asked]
            phrases.append(torch.stack(pairs).prod().item())
            sure = [logits(pixels, q).softmax(-1)[yes] for q in facts]
            assertions.append(torch.stack(sure).mean().item())
        return {"blip-vqa": phrases, "da-score": assertions}

    pil = processor(large(), return_tensors="pt").pixel_values
    return {"scores": score((small() - MEAN) / STD), "scores_pil": score(pil)}


@torch.no_grad()
def vqascore() -> dict:
    base = "t2v_metrics.models.vqascore_models"
    bare("t2v_metrics", "t2v_metrics.models", base, f"{base}.clip_t5", f"{base}.clip_t5.model",
         f"{base}.clip_t5.model.language_model")  # fmt: skip
    encoder = importlib.import_module(f"{base}.clip_t5.model.multimodal_encoder.clip_encoder")
    clip_t5 = importlib.import_module(f"{base}.clip_t5.model.language_model.clip_t5")
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    def load_model(tower) -> None:
        """In place of a download: a tiny tower of the same classes."""
        tower.vision_tower = CLIPVisionModel(CLIPVisionConfig(**IN["clip"]["vision_config"]))
        tower.image_processor = CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        tower.is_loaded = True

    encoder.CLIPVisionTower.load_model = load_model
    config = clip_t5.CLIPT5Config(
        **IN["t5"] | {"vocab_size": IN["t5_rows"]}, mm_vision_tower="openai/tiny",
        mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu", mm_hidden_size=32,
    )  # fmt: skip
    model = clip_t5.CLIPT5ForConditionalGeneration(config)
    model.tie_weights()
    shapes = load(model)
    model.resize_token_embeddings(IN["t5_words"])
    model.config.use_cache = False

    def score(pictures: torch.Tensor) -> list[float]:
        found = []
        labels = torch.tensor([IN["t5_answer"]])
        for pixels, (before, after) in zip(pictures, IN["t5_ids"], strict=True):
            asked = torch.tensor([[*before, -200, *after]])
            out = model(
                input_ids=asked, attention_mask=asked.ne(IN["t5_unknown"]),
                decoder_attention_mask=labels.ne(-100), labels=labels, images=pixels[None],
                return_dict=True,
            )  # fmt: skip
            loss = torch.nn.functional.cross_entropy(out.logits[0], labels[0])
            found.append((-loss).exp().item())
        return found

    colour = tuple(int(x * 255) for x in MEAN.flatten().tolist())
    squares = []
    for one in large():
        side = max(one.size)
        canvas = Image.new("RGB", (side, side), colour)
        canvas.paste(one, ((side - one.width) // 2, (side - one.height) // 2))
        squares.append(canvas)
    processor = model.get_vision_tower().image_processor
    pil = processor(squares, return_tensors="pt").pixel_values
    return {"shapes": shapes, "scores": score((small() - MEAN) / STD), "scores_pil": score(pil)}


@torch.no_grad()
def detector() -> dict:
    """Best box of each noun, by the processors' own post-processing, without a threshold."""
    from transformers import (  # fmt: skip
        OwlViTConfig,
        OwlViTForObjectDetection,
        OwlViTImageProcessor,
        YolosConfig,
        YolosForObjectDetection,
    )

    owl = OwlViTForObjectDetection(OwlViTConfig(**IN["owlvit"]))
    load(owl)
    text = ids(IN["owlvit_ids"], IN["owlvit"]["text_config"]["pad_token_id"])
    mask = ids([[1] * len(row) for row in IN["owlvit_ids"]], 0)
    pixels = (small(48) - MEAN) / STD
    out = owl(input_ids=text, attention_mask=mask, pixel_values=pixels)
    found = OwlViTImageProcessor().post_process_object_detection(out, threshold=0.0)
    yolos = YolosForObjectDetection(YolosConfig(**IN["yolos"]))
    load(yolos)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    view = (pictures(2, 32, 48) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    probabilities = yolos(view).logits.softmax(-1)
    return {
        "owlvit": [sorted(one["scores"].tolist(), reverse=True) for one in found],
        "owlvit_boxes": out.pred_boxes.tolist(),
        "yolos": probabilities[:, :, [2, 1]].tolist(),
    }


REFERENCES = {
    "hps": hps,
    "clip": clip,
    "aesthetic-v1": lambda: aesthetic("v1"),
    "aesthetic-v2": lambda: aesthetic("v2"),
    "image-reward": image_reward,
    "mps": mps,
    "blip-vqa": blip,
    "vqascore": vqascore,
    "detector": detector,
}


def main() -> None:
    for name in sys.argv[1:] or REFERENCES:
        content = REFERENCES[name]()
        (GOLDEN / f"{name}.json").write_text(json.dumps(content) + "\n")
        shown = {key: value for key, value in content.items() if key.startswith("scores")}
        print(name, shown)


if __name__ == "__main__":
    main()
