"""Published settings of reward training, by name. Standard library only.

They say how to train, not what: model, reward and prompts are named beside them, for example
`align train --preset alignprop --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompts
animals --reward jpeg`. Two are named after their reward, and set it where none is given.
"""

from typing import Any

_ALIGNPROP = {
    "steps": 14,
    "batch_size": 128,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 5.0,
    "lora_rank": 4,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "eta": 0.0,
}

# DRaFT (arXiv 2309.17400), small-scale runs; the window is the method, the other values are
# recalled from its appendix and were not checked against it.
_DRAFT = {
    "steps": 2000,
    "batch_size": 4,
    "learning_rate": 4e-4,
    "weight_decay": 0.1,
    "lora_rank": 8,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "eta": 0.0,
}

# The defaults of TRL's AlignPropTrainer, removed in TRL 0.23; AlignProp's branch `trl_main` has
# the same and stops after 20 (aesthetic) or 25 (HPS) updates.
_TRL = _ALIGNPROP | {
    "steps": 100,
    "weight_decay": 1e-4,
    "max_grad_norm": 1.0,
    "guidance_scale": 5.0,
    "eta": 1.0,
    "grad_window": "random",
}

PRESETS: dict[str, dict[str, Any]] = {
    # For `embedded/scenes` on two CPU cores: few steps, all with gradient, as layout is decided
    # in the first ones. Pilots of scripts/bench/alignprop_gain.py got worse at larger rates; no
    # setting has shown a gain yet (docs/benchmarks.md).
    "embedded": {
        "steps": 130,
        "batch_size": 8,
        "learning_rate": 5e-4,
        "max_step_grad_norm": 0.01,
        "lr_schedule": "cosine",
        "warmup_steps": 5,
        "lora_rank": 8,
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "grad_window": "all",
        "checkpointing": False,
    },
    # Nine minutes on two CPU cores in bfloat16. Many rough images, as a pair says little; a wide
    # LoRA in all linear layers, as a narrow one reaches little of the direction.
    "embedded-dpo": {
        "method": "dpo",
        "steps": 250,
        "batch_size": 32,
        "micro_batch_size": 16,
        "group_size": 8,
        "pair_timesteps": 4,
        "learning_rate": 2.5e-3,
        "lr_schedule": "linear",
        "warmup_steps": 5,
        "lora_rank": 32,
        "lora_targets": (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "ff.net.0.proj",
            "ff.net.2",
            "proj_in",
            "proj_out",
        ),
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "checkpointing": False,
        "sample_every": 125,
    },
    # AlignProp (arXiv 2310.03739), the authors' code: branch `main`, aesthetic run. The window is
    # the paper's: one tail per update, where the code draws every step by itself.
    "alignprop": _ALIGNPROP | {"grad_window": "random"},
    "alignprop-aesthetic": _ALIGNPROP | {"grad_window": "random", "reward": "aesthetic"},
    # The same with gradient through the last step only (its `*_k1` configurations).
    "alignprop-k1": _ALIGNPROP | {"grad_window": "1"},
    "alignprop-hps": _TRL | {"steps": 25, "reward": "hps:2.0"},
    "trl": _TRL,
    "draft-1": _DRAFT | {"grad_window": "1"},
    "draft-lv": _DRAFT | {"grad_window": "draft-lv:2"},
    # ReFL (arXiv 2304.05977): 40 steps, the prediction of x_0 at one of the steps 30 to 39.
    "refl": {"num_inference_steps": 40, "grad_window": "refl"},
    # DRaFT+ (NeMo-Aligner): DRaFT-1 with the distance to the base and a moving average.
    "draft-plus": _DRAFT | {"grad_window": "1", "kl_weight": 0.1, "ema_decay": 0.9999},
}
