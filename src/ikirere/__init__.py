"""Ikirere: a foundry for small language models, from raw text to a served, tool-using model."""

__version__ = "0.1.0"
