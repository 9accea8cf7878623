"""AlignProp and DPO on diffusion models (arXiv 2310.03739, 2311.12908)."""
