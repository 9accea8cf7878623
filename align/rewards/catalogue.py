"""Where the weights of published rewards come from: repositories, files, sizes, licences.

Everything here is a literal table: `align fetch` downloads what it says, `align rewards` prints it,
and a reward whose files are missing quotes it. Sizes are rounded and of the files that are needed;
they and the licences are the publishers' statements as remembered, except where a checksum stands:
those files were measured. For all others, the Hub states a checksum at download, and `align fetch
--check` compares with it.
"""

from dataclasses import dataclass

# What a search of the embedded models maximizes where nothing else is asked for.
SCENES_REWARD = "scenes-detector=2,scenes-clip"

# Whole expressions by name, and what they are worth at most where that is known.
SETS = {
    # CARINOX minimises 5 (1 - 2 HPS) + 5 (1 - (ImageReward + 3) / 6) + 5 (1 - DA) + (1 - VQAScore).
    "carinox": "hps=10,image-reward=0.8333333333333334,da-score=5,vqascore=1",
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
        sha256: of the only file, where it was measured.
    """

    repo: str
    files: tuple[str, ...]
    model: bool = False
    size: int = 0
    licence: str = "unknown"
    url: str | None = None
    sha256: str | None = None


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


def _hps(file: str) -> tuple[Source, ...]:
    weights = Source("xswu/HPSv2", (file,), size=1970 * _MB, licence="Apache-2.0")
    return weights, CLIP_H_WORDS


def _flan_t5(size: str, megabytes: int) -> tuple[Source, ...]:
    weights = Source(
        f"zhiqiulin/clip-flant5-{size}", ("config.json",), True, megabytes * _MB, "Apache-2.0"
    )
    words = Source(f"google/flan-t5-{size}", _T5_FILES, size=_MB, licence="Apache-2.0")
    return weights, words, CLIP_L_336


# term of a reward expression -> what it loads
PUBLISHED: dict[str, tuple[Source, ...]] = {
    "aesthetic": (AESTHETIC_V2, CLIP_L),
    "aesthetic:v1": (AESTHETIC_V1, CLIP_L),
    "blip-vqa": (BLIP_VQA,),
    "clip": (CLIP_L,),
    "da-score": (BLIP_VQA,),
    "detector": (Source("google/owlvit-base-patch32", _CLIP_FILES, True, 613 * _MB, "Apache-2.0"),),
    "detector:model=hustvl/yolos-tiny": (
        Source("hustvl/yolos-tiny", ("config.json",), True, 26 * _MB, "Apache-2.0"),
    ),
    "hps": _hps("HPS_v2.1_compressed.pt"),
    "hps:2.0": _hps("HPS_v2_compressed.pt"),
    "image-reward": (
        Source(
            "THUDM/ImageReward",
            ("ImageReward.pt",),
            size=1790 * _MB,
            licence="Apache-2.0",
        ),
        BERT_WORDS,
    ),
    "mps": (
        Source("RE-N-Y/mpsv1", ("model.safetensors",), size=4420 * _MB, licence="MIT (code)"),
        Source(CLIP_H.repo, _CLIP_FILES, size=2 * _MB, licence="MIT"),
    ),
    "nsfw": (NSFW, CLIP_H),
    "pickscore": (
        Source("yuvalkirstain/PickScore_v1", ("config.json",), True, 3946 * _MB, "MIT"),
        CLIP_H_WORDS,
    ),
    "vqascore": _flan_t5("xl", 12100),
    "vqascore:clip-flant5-xxl": _flan_t5("xxl", 46000),
}


def sources(name: str, argument: str | None = None) -> tuple[Source, ...]:
    """What a term loads; empty for rewards without published weights.

    `clip:OWNER/NAME`, `blip-vqa:OWNER/NAME`, `vqascore:OWNER/NAME` and `detector:model=OWNER/NAME`
    name other repositories of the Hub in transformers' layout: size and licence are theirs.
    """
    key = name if argument is None else f"{name}:{argument}"
    if key in PUBLISHED:
        return PUBLISHED[key]
    if name not in PUBLISHED:
        return ()
    if argument is not None and name == "detector":
        parts = [part.partition("=") for part in argument.split(";")]
        model = {key: value for key, _, value in parts}.get("model")
        key = f"detector:model={model}"
        return PUBLISHED[key] if key in PUBLISHED else _other(model, PUBLISHED["detector"])
    if name in ("blip-vqa", "clip", "da-score", "vqascore"):
        return _other(argument, PUBLISHED[name])
    return PUBLISHED[name]


def _other(repo: str | None, default: tuple[Source, ...]) -> tuple[Source, ...]:
    if repo is None or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        return default
    if repo in (CLIP_H.repo, CLIP_L.repo):
        return (CLIP_H if repo == CLIP_H.repo else CLIP_L,)
    return (Source(repo, ("config.json",), True),)


def size_text(size: int) -> str:
    """`about 1.7 GB`; `size unknown` for 0."""
    if not size:
        return "size unknown"
    if size < _MB:
        return f"{size / 1000:.0f} kB"
    return f"about {size / 1e9:.1f} GB" if size >= 10**9 else f"about {max(1, size // _MB)} MB"
