"""Finds the model of a run, or of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from ikirere.errors import UserError
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_pretrained
from ikirere.recipe.load import load_recipe
from ikirere.recipe.sections import Serve
from ikirere.tokenizer.base import Tokenizer

STAGES = ("dpo", "sft", "pretrain")  # the most finished first
CONFIG = "config.json"
RECIPE = "recipe.yaml"


def find_model(path: str | Path) -> Path:
    """The folder with config.json: `path` itself, `path/model`, or that of the run's last model stage.

    Raises UserError naming the path where there is none.
    """
    given = Path(path)
    if not given.exists():
        raise UserError(f"{given}: no such folder; give a run folder (runs/NAME) or a folder with {CONFIG}")
    for folder in (given, given / "model", *(given / stage / "model" for stage in STAGES)):
        if (folder / CONFIG).is_file():
            return folder
    raise UserError(
        f"{given}: no model there; looked for {CONFIG} in it, in model/ and in {', '.join(f'{s}/model/' for s in STAGES)}"
    )


def model_name(folder: Path) -> str:
    """A short name: the run's for a folder of a run, else the folder's own."""
    resolved = folder.resolve()
    if resolved.name == "model":
        resolved = resolved.parent
    if resolved.name in STAGES and resolved.parent.name:
        resolved = resolved.parent
    return resolved.name or "model"


def serve_settings(path: str | Path) -> Serve:
    """The `serve` section of a run's recipe; its defaults for a folder that is no run."""
    recipe = Path(path) / RECIPE
    return load_recipe(recipe).serve if recipe.is_file() else Serve()


def load_run_model(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Decoder, Tokenizer, Path]:
    """Model (in eval mode), tokenizer and the folder they came from. `path`: run folder or Hugging Face folder.

    Raises UserError where the folder, the weights or the tokenizer are missing or do not fit together.
    """
    folder = find_model(path)
    model = load_pretrained(folder, dtype=dtype, device=device)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}; "
            "they do not belong together"
        )
    return model.eval(), tokenizer, folder
