"""The stages that are built: one line each. A recipe may name others; `run` names those that are missing."""

from __future__ import annotations

import importlib

from ikirere.programme.stage import Stage

STAGES: dict[str, str] = {
    "data": "ikirere.corpus.stage:DataStage",
    "tokenizer": "ikirere.tokenizer.stage:TokenizerStage",
    "shards": "ikirere.tokens.stage:ShardStage",
    "pretrain": "ikirere.pretrain.stage:PretrainStage",
    "sft": "ikirere.posttrain.stage:SftStage",
    "dpo": "ikirere.posttrain.stage:DpoStage",
    "evaluate": "ikirere.eval.stage:EvaluateStage",
    "report": "ikirere.report.stage:ReportStage",
}

MODULES: dict[str, str] = {name: path.split(":")[0] for name, path in STAGES.items()}
"""Stage -> its module, from which the hash of its code is taken without importing it."""


def load_stage(name: str) -> Stage | None:
    """The stage of that name, or None where it is not built."""
    if name not in STAGES:
        return None
    module, attribute = STAGES[name].split(":")
    return getattr(importlib.import_module(module), attribute)()
