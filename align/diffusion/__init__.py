"""The one denoising loop, `align.diffusion.sample.sample`, and what differs between families."""
