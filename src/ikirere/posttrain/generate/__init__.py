"""Conversations with real answers, made from a seed: one file per kind, `KINDS` in `conversations.py`."""

from ikirere.posttrain.generate.conversations import KINDS, conversations
from ikirere.posttrain.generate.row import Row, Split, answer_is_right

__all__ = ["KINDS", "Row", "Split", "answer_is_right", "conversations"]
