"""The parts of `align.train`: gradient windows, one update, checkpoints, judging, reports."""
