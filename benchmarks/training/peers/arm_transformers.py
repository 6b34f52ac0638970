"""transformers: LlamaForCausalLM under the library's own Trainer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import BATCH, CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, arguments, bits_per_byte, report, tokens
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Random windows; the model shifts labels itself, so the last of CONTEXT + 1 tokens is only a label."""

    def __init__(self, data: np.ndarray, count: int, seed: int) -> None:
        self.data = data
        self.starts = np.random.default_rng(seed).integers(0, len(data) - CONTEXT, count)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self.starts[index]
        window = torch.from_numpy(self.data[start : start + CONTEXT].astype(np.int64))
        return {"input_ids": window, "labels": window}


def main() -> None:
    args = arguments(__doc__ or "")
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=384, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
            tie_word_embeddings=True, use_cache=False,
        )
    )  # fmt: skip
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.work / "trainer"), per_device_train_batch_size=BATCH, max_steps=args.steps,
            learning_rate=1e-3, adam_beta2=0.99, weight_decay=0.1, warmup_steps=max(1, args.steps // 10),
            lr_scheduler_type="cosine", max_grad_norm=1.0, use_cpu=True, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, seed=args.seed, torch_compile=args.variant == "compiled",
        ),
        train_dataset=Windows(tokens(args.data, "train"), (args.steps + 2) * BATCH, args.seed),
    ).train()  # fmt: skip
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    report(parameters=parameters, bits_per_byte=bits_per_byte(lambda x: model(input_ids=x).logits, args.data))


main()
