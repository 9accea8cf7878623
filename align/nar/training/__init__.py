"""NAR models, tokenizers and their alignment, trained."""
