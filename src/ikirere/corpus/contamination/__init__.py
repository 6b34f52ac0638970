"""Evaluation items in training text: what the sets hold, and an index that finds it."""
