"""nanoGPT: its own train.py, run in its checkout with its settings for a small model on a CPU."""

from __future__ import annotations

import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import BATCH, CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, arguments, bits_per_byte, report


def main() -> None:
    args = arguments(__doc__ or "")
    checkout = args.work.resolve() / "nanoGPT"
    shutil.copytree(args.peer, checkout, dirs_exist_ok=True)
    data = checkout / "data" / "benchmark"
    data.mkdir(parents=True, exist_ok=True)
    for name in ("train.bin", "val.bin"):
        shutil.copy(args.data / name, data / name)
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": VOCABULARY}))
    here = Path.cwd()
    source = args.data.resolve()
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    compiled = args.variant == "compiled"
    sys.argv = [
        "train.py", "--dataset=benchmark", "--device=cpu", "--dtype=float32", f"--compile={compiled}",
        f"--eval_interval={args.steps}", "--eval_iters=1", "--log_interval=100000",
        f"--block_size={CONTEXT}", f"--batch_size={BATCH}", f"--n_layer={LAYERS}", f"--n_head={HEADS}",
        f"--n_embd={WIDTH}", f"--max_iters={args.steps}", f"--lr_decay_iters={args.steps}", "--dropout=0.0",
        "--gradient_accumulation_steps=1", "--learning_rate=1e-3", "--min_lr=1e-4", "--beta2=0.99",
        f"--warmup_iters={max(1, args.steps // 10)}", "--out_dir=out",
    ]  # fmt: skip
    runpy.run_path("train.py", run_name="__main__")
    import torch
    from model import GPT, GPTConfig

    saved = torch.load("out/ckpt.pt", map_location="cpu", weights_only=False)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in saved["model"].items()})
    model.eval()
    os.chdir(here)

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs, inputs)[0]  # nanoGPT gives all places only where it is given targets

    parameters = sum(p.numel() for p in model.parameters())
    report(parameters=parameters, bits_per_byte=bits_per_byte(logits, source))


main()
