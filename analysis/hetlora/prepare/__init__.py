"""Conversations and text to one prepared .h5 file (docs/data.md describes the format)."""
