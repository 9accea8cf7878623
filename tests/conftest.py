"""Settings of the whole suite."""

from hypothesis import settings

# Time limits per example say nothing about the code on a machine that is busy with other work.
settings.register_profile("align", deadline=None)
settings.load_profile("align")
