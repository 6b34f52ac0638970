"""litgpt: its own `pretrain.setup`, with a Llama-shaped configuration and a data module over the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import litgpt
import numpy as np
import torch
from common import BATCH, CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, arguments, bits_per_byte, report, tokens
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from torch.utils.data import DataLoader, Dataset


class Windows(Dataset[torch.Tensor]):
    """Random windows of CONTEXT + 1 tokens."""

    def __init__(self, data: np.ndarray, count: int, seed: int) -> None:
        self.data = data
        self.starts = np.random.default_rng(seed).integers(0, len(data) - CONTEXT - 1, count)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        start = self.starts[index]
        return torch.from_numpy(self.data[start : start + CONTEXT + 1].astype(np.int64))


class Tokens(DataModule):
    """litgpt's interface over the benchmark's files."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        super().__init__()
        self.folder, self.count, self.seed = folder, count, seed

    def connect(self, *_: Any, **__: Any) -> None:
        """The sizes are fixed by the benchmark."""

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Windows(tokens(self.folder, "train"), self.count, self.seed), batch_size=BATCH)

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Windows(tokens(self.folder, "val"), BATCH, self.seed), batch_size=BATCH)


def main() -> None:
    args = arguments(__doc__ or "")
    sys.argv = [sys.argv[0], "benchmark"]  # litgpt reads the command line once more to record its settings
    config = litgpt.Config(
        name="benchmark", block_size=CONTEXT, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, n_layer=LAYERS,
        n_head=HEADS, n_embd=WIDTH, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=384,
    )  # fmt: skip
    setup(
        "benchmark", config, out_dir=args.work / "litgpt", precision="32-true",
        data=Tokens(args.data, (args.steps + 2) * BATCH, args.seed),
        train=TrainArgs(
            save_interval=None, log_interval=100000, global_batch_size=BATCH, micro_batch_size=BATCH,
            max_tokens=args.steps * BATCH * CONTEXT, max_norm=1.0, min_lr=1e-4,
            lr_warmup_steps=max(1, args.steps // 10), tie_embeddings=True,
        ),
        eval=EvalArgs(interval=100000, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1}},
        devices=1, logger_name="csv", seed=args.seed,
    )  # fmt: skip
    model = litgpt.GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    saved = torch.load(
        args.work / "litgpt" / "final" / "lit_model.pth", map_location="cpu", weights_only=False
    )
    model.load_state_dict(saved.get("model", saved))
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    report(parameters=parameters, bits_per_byte=bits_per_byte(model, args.data))


main()
