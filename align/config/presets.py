"""Published settings of reward training, by name. Standard library only.

They say how to train, not what: model, reward and prompts are named beside them, for example
`align train --preset alignprop --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompts
animals --reward jpeg`. Two are named after their reward, and set it where none is given. Those
whose source replaces the model's sampler name it: `--scheduler` with a model of another kind.
"""

from typing import Any

# AlignProp (arXiv 2310.03739), the authors' branch `main`: config/align_prop.py, aesthetic (seven
# epochs of two updates). Their loss is 0.01 times ours, so their clip at 5 is 500 here.
_ALIGNPROP = {
    "steps": 14,
    "batch_size": 128,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 500.0,
    "lora_rank": 4,
    "scheduler": "DDIMScheduler",
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "eta": 0.0,
}

# DRaFT (arXiv 2309.17400), small-scale runs, as args.py of vlad-filin/diffusion-rl quotes them: not
# the authors' code. The values were not checked against the paper.
_DRAFT = {
    "steps": 2000,
    "batch_size": 4,
    "learning_rate": 4e-4,
    "weight_decay": 0.1,
    "lora_rank": 8,
    "scheduler": "DDIMScheduler",
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "eta": 0.0,
}

# Online RL of SD 3.5 M at 512 pixels, 48 groups of 24 images an update, no guidance: DiffusionNFT
# (arXiv 2509.16117), NVlabs/DiffusionNFT, config/nft.py. Their sampler is a multistep solver of
# second order; the flow's own stays here. GenEval's run; others take nft_beta 0.1.
_NFT = {
    "method": "nft",
    "steps": 1000,
    "batch_size": 1152,
    "micro_batch_size": 24,
    "group_size": 24,
    "pair_timesteps": 9,
    "learning_rate": 3e-4,
    "weight_decay": 1e-4,
    "max_grad_norm": 1.0,
    "lora_rank": 32,
    "lora_alpha": 64.0,
    "num_inference_steps": 10,
    "guidance_scale": 1.0,
    "kl_weight": 1e-4,
    "old_decay": 0.5,
}

PRESETS: dict[str, dict[str, Any]] = {
    # For `embedded/scenes` on two CPU cores: few steps, all with gradient, as layout is decided
    # in the first ones. Pilots of scripts/bench/alignprop_gain.py got worse at larger rates, and
    # none gained in the verifier's eyes: for that, take embedded-dpo (docs/benchmarks.md).
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
    # Twenty minutes of one CPU core in bfloat16. Many rough images, as a pair says little. Only the
    # up blocks: elsewhere different prompts agree on nothing, so a step there is noise. The tie to
    # the base averages noise away, and keeps the LoRA small: draw with it at weight 2. Found with a
    # reward of before scenes-detector; with this one it has not been measured.
    "embedded-dpo": {
        "method": "dpo",
        "reward": "z(scenes-detector=1,scenes-clip=0.5)",
        "steps": 300,
        "batch_size": 32,
        "micro_batch_size": 16,
        "group_size": 8,
        "pair_timesteps": 8,
        "kl_weight": 30.0,
        "learning_rate": 1.2e-3,
        "lr_schedule": "linear",
        "warmup_steps": 5,
        "lora_rank": 32,
        "lora_targets": ("up_blocks.*.attentions.*",),
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "checkpointing": False,
        "sample_every": 150,
    },
    # A style for `embedded/scenes`, two to three minutes of one CPU core in bfloat16: what all
    # prompts share is learned at once (its exact value rises by 0.7 of its deviation on half a).
    # It costs rightness, 8 points there; without the detector beside it costs more.
    "taste": {
        "reward": "scenes-taste=1,scenes-detector=1",
        "steps": 40,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "max_step_grad_norm": 0.01,
        "lr_schedule": "cosine",
        "warmup_steps": 5,
        "lora_rank": 8,
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "grad_window": "all",
        "checkpointing": False,
        "sample_every": 0,
    },
    # For `embedded/scenes-turbo`, six minutes of one CPU core in bfloat16. One step, so a picture's
    # gradient costs what drawing it costs; what pictures agree on lies in the last up blocks
    # (scripts/bench/gradient_signal.py), and a soft reward asks for near misses first.
    "embedded-turbo": {
        "reward": "scenes-detector:soft",
        "steps": 120,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "lr_schedule": "cosine",
        "warmup_steps": 5,
        "lora_rank": 16,
        "lora_targets": ("up_blocks.2.*", "up_blocks.1.*", "conv_out"),
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "checkpointing": False,
        "sample_every": 0,
    },
    # The window is the paper's: one tail per update, where the code draws every step by itself.
    "alignprop": _ALIGNPROP | {"grad_window": "random"},
    "alignprop-aesthetic": _ALIGNPROP | {"grad_window": "random", "reward": "aesthetic"},
    # aesthetic_k1 of the same file: gradient through the last step only.
    "alignprop-k1": _ALIGNPROP | {"grad_window": "1"},
    # hps of the same file: 200 epochs of two updates. Their later branch `trl_main` has other
    # settings, and its hps.sh stops after 25 updates.
    "alignprop-hps": _ALIGNPROP | {"steps": 400, "grad_window": "random", "reward": "hps:2.0"},
    # The defaults of TRL 0.12.2 (the same up to the last, 0.23.1): trl/trainer/alignprop_config.py.
    # Its examples/scripts/alignprop.py proposes 20 updates of 128 images, 8 a pass.
    "trl": {
        "steps": 100,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "max_grad_norm": 1.0,
        "lora_rank": 4,
        "scheduler": "DDIMScheduler",
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "eta": 1.0,
        "grad_window": "random",
    },
    "draft-1": _DRAFT | {"grad_window": "1"},
    "draft-lv": _DRAFT | {"grad_window": "draft-lv:2"},
    # ReFL (arXiv 2304.05977): THUDM/ImageReward, scripts/train_refl.sh and ImageReward/ReFL.py. It
    # trains all weights, we a LoRA (their ReFL_SDXL_LoRA.py: rank 4, rate 1e-4). Its loss is 1e-3
    # times ours, so its clip at 1 is 1000 here; its DDPM sampler is DDIM with eta 1.
    "refl": {
        "steps": 100,
        "batch_size": 64,
        "micro_batch_size": 2,
        "learning_rate": 1e-5,
        "weight_decay": 1e-2,
        "max_grad_norm": 1000.0,
        "lora_rank": 4,
        "scheduler": "DDIMScheduler",
        "num_inference_steps": 40,
        "guidance_scale": 1.0,
        "eta": 1.0,
        "grad_window": "refl",
        "ema_decay": 0.9999,
    },
    # DRTune (arXiv 2405.00760) as RuoyuWang-2077/FlowBP, not its authors, ran it on SD 3.5:
    # configs/final/sd35/sd3_5_drtune.yaml. There with all weights trained and early stops.
    "drtune": {
        "steps": 300,
        "batch_size": 64,
        "micro_batch_size": 8,
        "learning_rate": 1e-5,
        "weight_decay": 1e-4,
        "max_grad_norm": 1.0,
        "num_inference_steps": 25,
        "guidance_scale": 3.5,
        "detach_uncond": True,
        "grad_window": "drtune:3",
        "ema_decay": 0.995,
    },
    "nft": _NFT,
    # ELBO-RL (arXiv 2602.04663), jaemoo-choi/rethinking-diffusion-rl: NFT's frame with a tenth of
    # the reward's difference as advantage. Its EPG is this loss on policy.
    "elbo-rl": _NFT | {"steps": 360, "advantage": "mean", "max_grad_norm": 5.0},
    # V-GRPO (arXiv 2604.23380), tang-bd/v-grpo, of several rewards: its stages have 150, 200, 150,
    # 50 and 30 updates. It draws by the present policy; its ratio is 1 on policy.
    "v-grpo": _NFT
    | {
        "steps": 580,
        "pair_timesteps": 4,
        "max_grad_norm": 0.0,
        "num_inference_steps": 40,
        "kl_weight": 0.0,
        "old_decay": 0.0,
    },
    # Flow-GRPO (arXiv 2505.05470), yifan123/flow_grpo, SD 3.5 M at 512 pixels: 48 groups of 24
    # images, of which it makes two optimizer steps. Its tie is the KL of the steps (0.04), ours the
    # distance of outputs, so its weight is not taken over.
    "flow-grpo": {
        "method": "grpo",
        "steps": 1000,
        "batch_size": 1152,
        "micro_batch_size": 24,
        "group_size": 24,
        "learning_rate": 3e-4,
        "weight_decay": 1e-4,
        "max_grad_norm": 1.0,
        "lora_rank": 32,
        "lora_alpha": 64.0,
        "num_inference_steps": 10,
        "guidance_scale": 4.5,
        "grad_window": "all",
        "noise_level": 0.7,
    },
    # DRaFT+: NVIDIA/NeMo-Aligner, examples/mm/stable_diffusion/conf/draftp_sd.yaml. It runs an
    # epoch of its prompts; the number of updates is ours.
    "draft-plus": {
        "steps": 2000,
        "batch_size": 4,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "warmup_steps": 10,
        "max_grad_norm": 10.0,
        "lora_rank": 32,
        "scheduler": "DDIMScheduler",
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "eta": 0.0,
        "grad_window": "1",
        "kl_weight": 1.0,
        "ema_decay": 0.9999,
    },
}
