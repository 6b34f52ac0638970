"""A training step of a dense 100M-parameter decoder beside transformers' Llama, on the CPU or a card.

A step is forward, backward, gradient clipping and AdamW (fused) on one batch of random tokens. All arms have the same
shape, start from the same weights, see the same tokens and share one process; rounds go through all arms in turn, so
that a change of the machine's load meets each of them alike. The figure is the median over rounds, and the median of
each round's ratio to ours.

Arms: ours, and transformers' LlamaForCausalLM with attention `sdpa` and `eager`, each as it is and through
torch.compile (ours layer by layer, as the training loop does it; transformers' whole model).

Example:
    python benchmarks/model/train_step.py --rounds 5 --threads 2 --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Clock, finish, machine, parser, rows
from torch import nn

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import save_pretrained
from ikirere.tokens.batch import Batch
from ikirere.train.objective import CrossEntropy
from ikirere.train.precision import compile_blocks

NAME = "train_step.py"
Loss = Callable[[], torch.Tensor]
ARMS = ("ours", "ours compiled", "transformers", "transformers compiled", "transformers eager attention")


def shape(args: argparse.Namespace) -> ModelConfig:
    """12 layers of 768 with 32,000 words, tied: 110M parameters."""
    return ModelConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        intermediate_size=8 * args.hidden // 3,
        max_position_embeddings=args.length,
    )


def arm(name: str, config: ModelConfig, folder: Path, batch: Batch, device: str) -> tuple[nn.Module, Loss]:
    """A model and what makes its loss."""
    model: nn.Module
    if name.startswith("ours"):
        model = Decoder(config).to(device)
        if "compiled" in name:
            compile_blocks(model)
        objective = CrossEntropy()
        return model, lambda: objective(model, batch)[0]
    from transformers import AutoModelForCausalLM

    attention = "eager" if "eager" in name else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).to(device)
    called = torch.compile(model) if "compiled" in name else model
    # transformers shifts labels by itself; ours are shifted already.
    labels = torch.cat((batch.tokens[:, :1], batch.labels[:, :-1]), dim=1)
    return model, lambda: called(input_ids=batch.tokens, labels=labels, use_cache=False).loss


def step_of(model: nn.Module, loss: Loss) -> Callable[[], float]:
    """One optimiser step; returns the loss before it."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def measure(args: argparse.Namespace) -> str:
    """The section: a row per arm, and what was measured."""
    clock = Clock(args.minutes)
    clock.another(1)
    config, r = shape(args), torch.Generator().manual_seed(args.seed)
    tokens = torch.randint(0, config.vocab_size, (args.batch, args.length + 1), generator=r)
    positions = torch.arange(args.length).expand(args.batch, -1)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions).to(args.device)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        first = Decoder(config)
        save_pretrained(first, folder)
        count = first.num_parameters()
        del first
        steps = {name: step_of(*arm(name, config, folder, batch, args.device)) for name in args.arms}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        losses: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.rounds + 1):
            for name, step in steps.items():
                begin = time.perf_counter()
                losses[name].append(step())
                if args.device != "cpu":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begin)
    body = []
    for name in steps:
        timed = seconds[name][1:]
        ratio = statistics.median(t / o for t, o in zip(timed, seconds["ours"][1:], strict=True))
        median = statistics.median(timed)
        speed = f"{args.batch * args.length / median:,.0f}"
        body.append([name, f"{median:.2f}", speed, f"{ratio:.2f} x", f"{losses[name][-1]:.4f}"])
    import transformers

    table = rows(["arm", "s per step", "tokens/s", "ours is faster by", "loss of the last step"], body)
    card = f"On {torch.cuda.get_device_name()}. " if args.device == "cuda" else ""
    note = (
        f"{count:,} parameters, {args.batch} x {args.length} tokens, fp32, median of {args.rounds} rounds after one "
        f"for warming up, seed {args.seed}, transformers {transformers.__version__}. {card}"
    )
    return f"## Training step beside transformers\n\n{table}\n{note}{machine(args, clock)}"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--length", type=int, default=2048, help="tokens of a sequence")
    made.add_argument("--batch", type=int, default=1, help="sequences")
    made.add_argument("--layers", type=int, default=12)
    made.add_argument("--hidden", type=int, default=768, help="width; heads are of 64")
    made.add_argument("--vocabulary", type=int, default=32_000)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS)
    )
    args = made.parse_args()
    if "ours" not in args.arms:
        made.error("--arms needs `ours`: ratios are to it")
    torch.set_num_threads(args.threads)
    finish(args, NAME, measure(args))


if __name__ == "__main__":
    main()
