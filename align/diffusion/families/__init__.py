"""One small file per family of diffusers pipelines: all that sets it apart from the others."""
