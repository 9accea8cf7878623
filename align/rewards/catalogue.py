"""Where the weights of published rewards come from: repositories, files, sizes, licences.

Everything here is a literal table: `align fetch` downloads what it says, `align rewards` prints it,
and a reward whose files are missing quotes it. Sizes are rounded and of the files that are needed;
they and the licences are the publishers' statements as remembered, except where a checksum stands:
those files were measured. For all others, the Hub states a checksum at download, and `align fetch
--check` compares with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# What a search of the embedded models maximizes where nothing else is asked for.
SCENES_REWARD = "scenes-detector=2,scenes-clip"

# Whole expressions by name, and what they are worth at most where that is known.
SETS = {
    # CARINOX minimises 5 (1 - 2 HPS) + 5 (1 - (ImageReward + 3) / 6) + 5 (1 - DA) + (1 - VQAScore).
    "carinox": "hps=10,image-reward=0.8333333333333334,da-score=5,vqascore=1",
    # What flow_grpo trains on.
    "flow-grpo-geneval": "geneval:dense",
    # ReNO minimises 5 (1 - HPS) + (2 - ImageReward) + 0.05 (30 - PickScore) + 0.01 (100 - CLIP).
    "reno": "hps=5,image-reward=1,pickscore=0.05,clip:laion/CLIP-ViT-H-14-laion2B-s32B-b79K=0.01",
}


@dataclass(frozen=True)
class Source:
    """Files of one repository.

    Attributes:
        repo: OWNER/NAME on the Hugging Face Hub, or on GitHub where `url` is given.
        files: names that must be there.
        model: whether the model's weights in transformers' layout are needed too (safetensors
            where the repository has them, else `.bin`).
        size: bytes to download, rounded.
        licence: of the weights.
        url: where the only file is, if it is not on the Hub.
        sha256: of the only file, or its first digits.
        any_of: names of which one must be there.
    """

    repo: str
    files: tuple[str, ...]
    model: bool = False
    size: int = 0
    licence: str = "unknown"
    url: str | None = None
    sha256: str | None = None
    any_of: tuple[str, ...] = ()


_CLIP_FILES = ("config.json", "vocab.json", "merges.txt")
_MB = 10**6

CLIP_L = Source("openai/clip-vit-large-patch14", _CLIP_FILES, True, 1712 * _MB, "MIT (code)")
CLIP_H = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _CLIP_FILES, True, 3946 * _MB, "MIT")
CLIP_H_WORDS = Source(CLIP_H.repo, _CLIP_FILES[1:], size=2 * _MB, licence="MIT")
CLIP_L_336 = Source(
    "openai/clip-vit-large-patch14-336", ("config.json",), True, 1712 * _MB, "MIT (code)"
)
BERT_WORDS = Source("bert-base-uncased", ("vocab.txt",), size=_MB, licence="Apache-2.0")
BLIP_VQA = Source(
    "Salesforce/blip-vqa-base", ("config.json", "vocab.txt"), True, 1540 * _MB, "BSD-3-Clause"
)
_T5_FILES = ("tokenizer.json", "tokenizer_config.json")
_QWEN_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


_TEMPLATES = ("chat_template.json", "chat_template.jinja")


def _qwen(name: str, megabytes: int, licence: str = "Apache-2.0") -> tuple[Source, ...]:
    size = megabytes * _MB
    return (Source(f"Qwen/{name}", _QWEN_FILES, True, size, licence, any_of=_TEMPLATES),)


QWEN3_VL_2B = _qwen("Qwen3-VL-2B-Instruct", 4300)
QWEN3_VL_8B = _qwen("Qwen3-VL-8B-Instruct", 17500)
# Judges by questions, by name; 3B is for non-commercial use.
QWENS = {
    found[0].repo: found
    for found in (
        QWEN3_VL_2B,
        _qwen("Qwen3-VL-4B-Instruct", 8900),
        QWEN3_VL_8B,
        _qwen("Qwen2.5-VL-7B-Instruct", 16600),
        _qwen("Qwen2.5-VL-3B-Instruct", 7500, "Qwen research"),
    )
}
HPSV3 = Source("MizzenAI/HPSv3", ("HPSv3.safetensors",), size=17000 * _MB, licence="Apache-2.0")
QWEN2_VL_WORDS = Source(
    "Qwen/Qwen2-VL-7B-Instruct", _QWEN_FILES, size=12 * _MB, licence="Apache-2.0",
    any_of=_TEMPLATES,
)  # fmt: skip
AESTHETIC_V1 = Source(
    "LAION-AI/aesthetic-predictor",
    ("sa_0_4_vit_l_14_linear.pth",),
    size=4071,
    licence="MIT",
    url="https://github.com/LAION-AI/aesthetic-predictor/raw/"
    "6d122adad522ab246644d9dc1c6d7a3810ee255f/sa_0_4_vit_l_14_linear.pth",
    sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
)
AESTHETIC_V2 = Source(
    "christophschuhmann/improved-aesthetic-predictor",
    ("sac+logos+ava1-l14-linearMSE.pth",),
    size=3714759,
    licence="Apache-2.0",
    url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/"
    "6934dd81792f086e613a121dbce43082cb8be85e/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)
NSFW = Source(
    "LAION-AI/CLIP-based-NSFW-Detector",
    ("h14_nsfw.pth",),
    size=23 * _MB,
    licence="MIT",
    url="https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/"
    "d6bb8fe31fd4aecbfed7dfb62df4fe5858bfc014/h14_nsfw.pth",
)

# The name of mmdet's file ends in the first digits of its checksum.
MASK2FORMER = Source(
    "openmmlab/mask2former",
    ("mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",),
    size=280 * _MB,
    licence="Apache-2.0",
    url="https://download.openmmlab.com/mmdetection/v2.0/mask2former/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    sha256="743b7d99",
)
MASK2FORMER_FACEBOOK = Source(
    "facebook/mask2former-swin-small-coco-instance", ("config.json",), True, 263 * _MB, "other"
)


def _hps(file: str) -> tuple[Source, ...]:
    weights = Source("xswu/HPSv2", (file,), size=1970 * _MB, licence="Apache-2.0")
    return weights, CLIP_H_WORDS


def _flan_t5(size: str, megabytes: int) -> tuple[Source, ...]:
    weights = Source(
        f"zhiqiulin/clip-flant5-{size}", ("config.json",), True, megabytes * _MB, "Apache-2.0"
    )
    words = Source(f"google/flan-t5-{size}", _T5_FILES, size=_MB, licence="Apache-2.0")
    return weights, words, CLIP_L_336


@dataclass(frozen=True)
class Named:
    """What a reward expression can name."""

    load: str
    """module:function of (argument, device), which returns a callable
    `(images, prompts[, metadata]) -> scores`: an `nn.Module` where there are weights, with an
    attribute `differentiable = False` where there is no gradient."""
    measures: str
    range: str
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    """Its published weights, by the argument that asks for them."""
    any_repository: bool = False
    """Whether its argument can be OWNER/NAME of the Hub, a repository in transformers' layout."""
    explains: bool = False
    """Whether it says why a score is low (`align.rewards.facts`)."""
    words: tuple[str, ...] = ()
    """Settings that its argument takes as `key=word`; `model` is a repository or folder."""
    numbers: tuple[str, ...] = ()
    """Settings that its argument takes as `key:NUMBER`."""


# Every reward: loading, `align rewards`, `align fetch`, the demo and the docs read this.
REWARDS = {
    "aesthetic": Named("align.rewards.aesthetic:load",
        "how much people like the picture, whatever the prompt", "about 1 to 10",
        {"": (AESTHETIC_V2, CLIP_L), "v1": (AESTHETIC_V1, CLIP_L)}),
    "blip-vqa": Named("align.rewards.blip_vqa:load",
        "product of p(yes) over the prompt's noun phrases", "0 to 1", {"": (BLIP_VQA,)},
        any_repository=True, explains=True),
    "chat": Named("align.rewards.chat:load",
        "what a model behind a chat server says of the picture", "0 to 1, or the answer's"),
    "clip": Named("align.rewards.clip:load", "100 cos(image, prompt) of a CLIP", "-100 to 100",
        {"": (CLIP_L,)}, any_repository=True),
    "da-score": Named("align.rewards.blip_vqa:load_da_score",
        "mean p(yes) over the prompt's assertions", "0 to 1", {"": (BLIP_VQA,)},
        any_repository=True, explains=True),
    "detector": Named("align.rewards.detector:load",
        "objects that are there, are not, or are so many", "at most 0",
        {"": (Source("google/owlvit-base-patch32", _CLIP_FILES, True, 613 * _MB, "Apache-2.0"),),
        "model=hustvl/yolos-tiny": (Source("hustvl/yolos-tiny", ("config.json",), True, 26 * _MB,
        "Apache-2.0"),)}, words=("present", "remove", "count", "model")),
    "geneval": Named("align.rewards.geneval:load",
        "whether the objects are there that a GenEval prompt asks for", "0 or 1; soft: at most 0",
        {"": (MASK2FORMER, CLIP_L), f"model={MASK2FORMER_FACEBOOK.repo}": (MASK2FORMER_FACEBOOK,
        CLIP_L)}, words=("model",)),
    "geneval2": Named("align.rewards.geneval2:load",
        "how surely a Qwen-VL sees each atom of a GenEval 2 prompt, geometric mean", "0 to 1",
        {"": QWEN3_VL_8B}, words=("mean", "score", "spellings", "model"), numbers=("pixels",)),
    "hps": Named("align.rewards.hps:load", "human preference score v2.1, cos(image, prompt)",
        "-1 to 1", {"": _hps("HPS_v2.1_compressed.pt"), "2.0": _hps("HPS_v2_compressed.pt")}),
    "http": Named("align.rewards.http_scorer:http", "scores from a server of one's own",
        "the server's"),
    "https": Named("align.rewards.http_scorer:https", "the same, encrypted", "the server's"),
    "hpsv3": Named("align.rewards.hpsv3:load", "human preference score v3, by a Qwen2-VL of 7B",
        "about -5 to 15", {"": (HPSV3, QWEN2_VL_WORDS)}),
    "image-reward": Named("align.rewards.image_reward:load",
        "what experts prefer, in standard deviations", "unbounded",
        {"": (Source("THUDM/ImageReward", ("ImageReward.pt",), size=1790 * _MB,
        licence="Apache-2.0"), BERT_WORDS)}),
    "jpeg": Named("align.rewards.jpeg:load",
        "minus the size as a JPEG file at quality 95, estimated, in kB", "< 0"),
    "jpeg-complexity": Named("align.rewards.jpeg:load_complexity",
        "size as a JPEG file at quality 95, estimated, in kB", "> 0"),
    "mps": Named("align.rewards.mps:load", "human preference, of a picture that read the prompt",
        "-100 to 100", {"": (Source("RE-N-Y/mpsv1", ("model.safetensors",), size=4420 * _MB,
        licence="MIT (code)"), Source(CLIP_H.repo, _CLIP_FILES, size=2 * _MB, licence="MIT"))}),
    "nsfw": Named("align.rewards.nsfw:load", "whether the picture is safe for work, a judge",
        "about 0 to 1", {"": (NSFW, CLIP_H)}),
    "ocr": Named("align.rewards.ocr:load", "how near the text read comes to the one quoted",
        "0 to 1", {"": (Source("microsoft/trocr-base-printed", ("config.json",), True, 1335 * _MB,
        "MIT"),)}, any_repository=True),
    "pickscore": Named("align.rewards.pickscore:load",
        "what users pick, about 100 cos(image, prompt)", "-100 to 100",
        {"": (Source("yuvalkirstain/PickScore_v1", ("config.json",), True, 3946 * _MB, "MIT"),
        CLIP_H_WORDS)}),
    "questions": Named("align.rewards.questions:load",
        "share of a benchmark's questions that a Qwen-VL answers with yes", "0 to 1",
        {"": QWEN3_VL_8B}, words=("ask", "model"), numbers=("pixels",)),
    "scenes-clip": Named("align.rewards.scenes_clip:load",
        "2.5 cos(image, prompt) of a contrastive dual encoder", "-2.5 to 2.5"),
    "scenes-detector": Named("align.rewards.scenes_detector:load",
        "a detector's findings against what the prompt states", "at most 0", explains=True),
    "scenes-preference": Named("align.rewards.scenes_preference:load",
        "which of two pictures fits a prompt better", "unbounded"),
    "scenes-taste": Named("align.rewards.scenes_taste:load",
        "large objects, apart, in full colours, on light even ground", "about 0 to 6.5"),
    "scenes-vqa": Named("align.rewards.scenes_vqa:load",
        "mean log p(yes) over the prompt's yes/no assertions", "< 0", explains=True),
    "vlm": Named("align.rewards.vlm:load",
        "log-odds of yes that the picture shows the prompt, a Qwen-VL", "unbounded",
        {"": QWEN3_VL_2B, **QWENS}, any_repository=True,
        words=("score", "ask", "answer", "penalty"), numbers=("pixels",)),
    "vqascore": Named("align.rewards.vqascore:load",
        "p(yes) that the picture shows the prompt, CLIP-FlanT5", "0 to 1", {"": _flan_t5("xl",
        12100), "clip-flant5-xxl": _flan_t5("xxl", 46000), **QWENS}, any_repository=True,
        numbers=("pixels",)),
}  # fmt: skip

# Those that ask a server: what it loads is its own.
SERVERS = ("http", "https", "chat")

# Judges only measure: training on what also judges would make the measurement worthless.
JUDGES = {
    "taste": Named("align.rewards.judges:load_taste",
        "the same as scenes-taste, exactly, by the verifier's reader", "0 to 6.5"),
    "verifier": Named("align.rewards.judges:load_exact",
        "every stated fact holds and nothing else is there", "0 or 1"),
    "verifier-partial": Named("align.rewards.judges:load_partial",
        "share of stated facts that hold", "0 to 1"),
}  # fmt: skip

# Networks that measure and reward nothing: `align fetch` has them too.
MEASURES = {
    "dinov2": (Source("facebook/dinov2-base", ("config.json",), True, 346 * _MB, "Apache-2.0"),),
}


def published() -> dict[str, tuple[Source, ...]]:
    """What terms of a reward expression load, of those with published weights, and measures."""
    return {
        f"{name}:{argument}" if argument else name: found
        for name, reward in (REWARDS | JUDGES).items()
        for argument, found in reward.sources.items()
    } | MEASURES


def sources(name: str, argument: str | None = None) -> tuple[Source, ...]:
    """What a term loads; empty for rewards without published weights.

    `clip:OWNER/NAME`, `detector:model=OWNER/NAME` and the like name other repositories of the Hub
    in transformers' layout: size and licence are theirs.
    """
    reward = (REWARDS | JUDGES).get(name)
    if reward is None or not reward.sources:
        return MEASURES.get(name, ()) if argument is None else ()
    default, asked = reward.sources[""], _asked(argument)
    for key in (argument or "", asked or "", f"model={asked}"):
        if key and key in reward.sources:
            return reward.sources[key]
    if not reward.any_repository and "model" not in reward.words:
        return default
    if asked is None or asked.count("/") != 1 or asked.startswith((".", "/", "~")):
        return default
    if asked in (CLIP_H.repo, CLIP_L.repo):
        return (CLIP_H if asked == CLIP_H.repo else CLIP_L,)
    if asked in QWENS:
        return QWENS[asked]
    # What else a reward of a named model loads is the same for every model.
    rest = default[1:] if "model" in reward.words else ()
    return (Source(asked, ("config.json",), True), *rest)


def _asked(argument: str | None) -> str | None:
    """The model that an argument names: `model=`, or a part without a key."""
    parts = [part.strip() for part in (argument or "").split(";")]
    named = [part.removeprefix("model=") for part in parts if part.startswith("model=")]
    bare = [part for part in parts if part and "=" not in part]
    return next(iter([*named, *sorted(bare, key=lambda part: "/" not in part)]), None)


def size_text(size: int) -> str:
    """`about 1.7 GB`; `size unknown` for 0."""
    if not size:
        return "size unknown"
    if size < _MB:
        return f"{size / 1000:.0f} kB"
    return f"about {size / 1e9:.1f} GB" if size >= 10**9 else f"about {max(1, size // _MB)} MB"
