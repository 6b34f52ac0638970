"""Ikirere: its decoder under its own loop. Variants: '' and 'compiled' (Muon, GQA 4:2), 'plain' (AdamW, no GQA,
the learning rate and betas of the peers, compiled)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import BATCH, CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, arguments, bits_per_byte, report, tokens

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.schema import Model
from ikirere.recipe.sections import Optimizer, Schedule, Training
from ikirere.tokens.batch import Batch
from ikirere.train.loop import train
from ikirere.train.objective import CrossEntropy


class Windows:
    """Random windows of the training text, as nanoGPT draws them; one seeded draw per step."""

    def __init__(self, data: np.ndarray, seed: int) -> None:
        self.data = data.astype(np.int64)
        self.seed, self.step = seed, 0
        self.positions = torch.arange(CONTEXT).expand(BATCH, CONTEXT)

    def next(self) -> Batch:
        rng = np.random.default_rng((self.seed, self.step))
        starts = rng.integers(0, len(self.data) - CONTEXT, BATCH)
        window = torch.from_numpy(self.data[starts[:, None] + np.arange(CONTEXT + 1)])
        self.step += 1
        return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), self.positions)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]


def main() -> None:
    args = arguments(__doc__ or "")
    plain = args.variant == "plain"
    model = Decoder(
        ModelConfig.from_recipe(
            Model(
                vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                num_key_value_heads=HEADS if plain else HEADS // 2, intermediate_size=384 if plain else 320,
                max_position_embeddings=CONTEXT, qk_norm=not plain,
            )
        )
    )  # fmt: skip
    model.reset_parameters(torch.Generator().manual_seed(args.seed))
    optimizer = (
        Optimizer(name="adamw", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
        if plain
        else Optimizer(name="muon", lr=4e-3, muon_lr=2e-2, weight_decay=0.01)
    )
    schedule = (
        Schedule(name="cosine", warmup=0.1, min_ratio=0.1)
        if plain
        else Schedule(name="wsd", warmup=0.02, decay=0.5)
    )
    training = Training(
        optimizer=optimizer, schedule=schedule, precision="fp32", compile="on" if args.variant else "off",
        checkpoint_every=10**9, log_every=50,
    )  # fmt: skip
    source = Windows(tokens(args.data, "train"), args.seed)
    train(model, source, CrossEntropy(), training, args.steps, args.work / "ikirere", args.seed)
    model.eval()
    report(parameters=model.num_parameters(), bits_per_byte=bits_per_byte(model, args.data))


main()
