"""All that can be told: settings as frozen dataclasses, their checks and presets.

Standard library only.
"""
