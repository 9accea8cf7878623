"""The web demo, installed as `align.demo`."""
