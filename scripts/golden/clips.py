"""References that score by a CLIP; see reference.py."""

import torch
from common import IN, MEAN, STD, bare, clip_pixels, ids, large, load, small
from formula import numbers, weights


@torch.no_grad()
def hps() -> dict:
    bare("hpsv2", "hpsv2.src", "hpsv2.src.open_clip")
    from hpsv2.src.open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from hpsv2.src.open_clip.transform import image_transform

    config = IN["open_clip"]
    model = CLIP(
        config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]),
        CLIPTextCfg(**config["text_cfg"]), output_dict=True,
    )  # fmt: skip
    shapes = load(model)
    text = torch.zeros(2, config["text_cfg"]["context_length"], dtype=torch.long)
    for row, known in zip(text, IN["clip_ids"], strict=True):
        row[: len(known)] = torch.tensor(known)

    def score(pixels: torch.Tensor) -> list[float]:
        out = model(pixels, text)
        return (out["image_features"] @ out["text_features"].T).diagonal().tolist()

    view = image_transform(32, is_train=False, resize_longest_max=True)
    pil = torch.stack([view(one) for one in large()])
    return {"shapes": shapes, "scores": score((small() - MEAN) / STD), "scores_pil": score(pil)}


@torch.no_grad()
def clip() -> dict:
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**IN["clip"]))
    load(model)
    text = ids(IN["clip_ids"], IN["clip"]["text_config"]["pad_token_id"])
    mask = ids([[1] * len(row) for row in IN["clip_ids"]], 0)

    def score(pixels: torch.Tensor) -> dict:
        out = model(input_ids=text, attention_mask=mask, pixel_values=pixels)
        cosine = (out.image_embeds * out.text_embeds).sum(-1)
        return {
            "clip": (100 * cosine).tolist(),
            "pickscore": out.logits_per_image.diagonal().tolist(),
        }

    return {"scores": score((small() - MEAN) / STD), "scores_pil": score(clip_pixels())}


@torch.no_grad()
def aesthetic(version: str) -> dict:
    from aesthetics_predictor import AestheticsPredictorV1, AestheticsPredictorV2Linear
    from transformers import CLIPVisionConfig

    kind, head = {
        "v1": (AestheticsPredictorV1, "predictor."),
        "v2": (AestheticsPredictorV2Linear, "layers."),
    }[version]
    config = IN["clip"]["vision_config"] | {"projection_dim": IN["clip"]["projection_dim"]}
    model = kind(CLIPVisionConfig(**config))
    load(model)
    # The published head files have these keys without the prefix (v1), or with it (v2).
    keep = "" if version == "v1" else head
    heads = {
        keep + key.removeprefix(head): list(value.shape)
        for key, value in model.state_dict().items() if key.startswith(head)
    }  # fmt: skip
    made = weights(heads)
    model.load_state_dict({head + k.removeprefix(keep): v for k, v in made.items()}, strict=False)
    return {
        "head": heads,
        "scores": model((small() - MEAN) / STD).logits.squeeze(-1).tolist(),
        "scores_pil": model(clip_pixels()).logits.squeeze(-1).tolist(),
    }


@torch.no_grad()
def mps() -> dict:
    """Picture by picture, as its mask depends on the batch; in float32 where it casts to halves."""
    from imscore.mps.cross import CrossModel
    from imscore.mps.model import MPS, CLIPModel, XCLIPModel
    from transformers import CLIPConfig

    torch.Tensor.half = torch.Tensor.float
    whole = MPS.__new__(MPS)  # its own constructors download the published sizes
    inner = CLIPModel.__new__(CLIPModel)
    for module in (whole, inner):
        torch.nn.Module.__init__(module)
    inner.model = XCLIPModel(CLIPConfig(**IN["clip"]))
    inner.model.text_model.eos_token_id = 2
    inner.cross_model = CrossModel(dim=16, layer_num=2, dim_head=8, heads=2)
    whole.mps, whole.condition = inner, "condition"
    shapes = load(whole)
    rows = dict(zip(IN["prompts"], IN["mps_ids"], strict=True))
    whole._tokenize = lambda text: torch.tensor(
        [IN["mps_condition"] if text == "condition" else rows[text[0]]]
    )
    whole._process = lambda pixels: pixels

    # Tiny prompts are all near to the condition: the layers see a mask of their own.
    hidden = torch.zeros(2, 5, 4)
    hidden[0, :, 1:3] = hidden[1, :, 3] = float("-inf")

    def score(pixels: torch.Tensor) -> list[float]:
        pairs = zip(pixels, IN["prompts"], strict=True)
        return [whole.score(one[None], [prompt]).item() for one, prompt in pairs]

    return {
        "shapes": shapes,
        "scores": score((small() - MEAN) / STD),
        "scores_pil": score(clip_pixels()),
        "masked": inner.cross_model(numbers("tokens", (2, 5, 16)).float(),
                                    numbers("words", (2, 4, 16)).float(), hidden).tolist(),
    }  # fmt: skip
