"""Prompts, and what they state."""
