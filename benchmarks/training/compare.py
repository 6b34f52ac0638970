"""Training throughput and quality beside peers, on one machine, one after the other.

The task: tinyshakespeare (90% train, 10% validation) in 1,024 tokens of a byte-level BPE trained on the
training part; 4 layers, width 128, context 128, 16 rows a step, fp32.

Two measures, the same way for every arm:

* tokens per CPU-second: processor time (user + system, all threads) of a run of `--steps` steps less that of a
  run of `--short` steps, so that imports, compilation and evaluation fall out; the middle of `--repeats`.
* bits per byte of the validation text after `--steps` steps, and after as many steps as fit into the processor
  time that the slowest arm needed for `--steps` (equal CPU time). Each run has its schedule over its own steps.

Example:
    python benchmarks/training/compare.py --text $IKIRERE_DATA/benchmarks/tinyshakespeare/input.txt \\
        --peer-python PEERS/bin/python --nanogpt PATH/TO/nanoGPT --write benchmarks/training/RESULTS.md

PEERS is an environment with torch, transformers, accelerate and litgpt; arms whose peer is missing are left out
and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TOKENS_PER_STEP = 16 * 128


@dataclass
class Arm:
    name: str
    script: str
    variant: str
    python: str
    peer: Path | None = None
    rates: dict[int, float] = field(default_factory=dict)  # threads -> tokens per CPU-second
    start: dict[int, float] = field(default_factory=dict)  # threads -> CPU-seconds beside the steps
    bits: float = float("nan")
    bits_equal: float = float("nan")
    steps_equal: int = 0
    parameters: int = 0


def prepare(text: Path, folder: Path, seed: int) -> None:
    """Tokenise both parts with a BPE trained on the first."""
    from ikirere.recipe.sections import Tokenizer as Config
    from ikirere.tokenizer.train import train_tokenizer

    raw = text.read_text(encoding="utf-8")
    cut = int(len(raw) * 0.9)
    parts = {"train": raw[:cut], "val": raw[cut:]}
    config = Config(kind="bpe", vocab_size=1024, train_bytes=len(raw), split_digits=True)
    tokenizer = train_tokenizer([parts["train"]], config, folder / "tokenizer", seed)
    for name, part in parts.items():
        ids = np.array(tokenizer.encode(part), dtype=np.uint16)
        ids.tofile(folder / f"{name}.bin")
        if name == "val":
            value = {"bytes_per_token": len(part.encode()) / len(ids)}
            (folder / "val.json").write_text(json.dumps(value))


def run(arm: Arm, data: Path, steps: int, threads: int, seed: int) -> tuple[float, dict[str, float]]:
    """(CPU-seconds, result) of one process."""
    with tempfile.TemporaryDirectory() as work:
        command = [arm.python, str(HERE / "peers" / arm.script), "--data", str(data), "--steps", str(steps)]
        command += ["--threads", str(threads), "--seed", str(seed), "--work", work, "--variant", arm.variant]
        command += ["--peer", str(arm.peer)] if arm.peer else []
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(Path(work) / "inductor"),
        }
        with (Path(work) / "output.log").open("w+") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            text = out.read()
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        raise SystemExit(f"{arm.name}: failed\n{text[-3000:]}")
    return usage.ru_utime + usage.ru_stime, json.loads(lines[-1][7:])


def measure(arm: Arm, data: Path, args: argparse.Namespace) -> None:
    for threads in args.threads:
        rates, starts = [], []
        for repeat in range(args.repeats):
            short, _ = run(arm, data, args.short, threads, repeat)
            whole, result = run(arm, data, args.steps, threads, repeat)
            per_step = (whole - short) / (args.steps - args.short)
            rates.append(TOKENS_PER_STEP / per_step)
            starts.append(whole - args.steps * per_step)
            if threads == args.threads[0] and repeat == 0:
                arm.bits, arm.parameters = result["bits_per_byte"], int(result["parameters"])
        arm.rates[threads] = statistics.median(rates)
        arm.start[threads] = statistics.median(starts)
        print(f"{arm.name}: {threads} thread(s): {arm.rates[threads]:,.0f} tokens per CPU-second", flush=True)


def arms(args: argparse.Namespace) -> list[Arm]:
    found = [
        Arm("Ikirere", "arm_ikirere.py", "", sys.executable),
        Arm("Ikirere, compiled", "arm_ikirere.py", "compiled", sys.executable),
        Arm("Ikirere, AdamW and no GQA, compiled", "arm_ikirere.py", "plain", sys.executable),
    ]
    if args.nanogpt:
        found.append(Arm("nanoGPT", "arm_nanogpt.py", "", args.peer_python or sys.executable, args.nanogpt))
        found.append(
            Arm(
                "nanoGPT, compiled",
                "arm_nanogpt.py",
                "compiled",
                args.peer_python or sys.executable,
                args.nanogpt,
            )
        )
    if args.peer_python:
        found.append(Arm("litgpt", "arm_litgpt.py", "", args.peer_python))
        found.append(Arm("transformers Trainer", "arm_transformers.py", "", args.peer_python))
        found.append(
            Arm("transformers Trainer, compiled", "arm_transformers.py", "compiled", args.peer_python)
        )
    if args.only:
        found = [arm for arm in found if arm.name in args.only]
    return found


def versions(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({n: m.version(n) for n in ('torch', 'litgpt', 'transformers')"
        " if any(d.metadata['Name'] == n for d in m.distributions())}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def table(found: list[Arm], args: argparse.Namespace) -> str:
    threads = args.threads
    heads = ["arm", "parameters", *(f"tokens per CPU-s, {t} thread{'s' * (t > 1)}" for t in threads)]
    heads += ["start-up CPU-s", f"bits per byte, {args.steps} steps", "bits per byte, equal CPU time (steps)"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for arm in found:
        cells = [arm.name, f"{arm.parameters:,}", *(f"{arm.rates[t]:,.0f}" for t in threads)]
        cells += [
            f"{arm.start[threads[0]]:.1f}",
            f"{arm.bits:.3f}",
            f"{arm.bits_equal:.3f} ({arm.steps_equal})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--peer-python", default=None, help="python of an environment with the peers")
    parser.add_argument("--nanogpt", type=Path, default=None, help="a checkout of nanoGPT")
    parser.add_argument("--nanogpt-commit", default="unknown")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--short", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="arms at once; at most cores / threads")
    parser.add_argument("--only", nargs="*", default=[], help="names of the arms to run")
    parser.add_argument("--write", type=Path, default=None, help="Markdown file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare(args.text, data, seed=0)
        found = arms(args)
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda arm: measure(arm, data, args), found))
        budget = max(args.steps * TOKENS_PER_STEP / arm.rates[args.threads[0]] for arm in found)

        def equal(arm: Arm) -> None:
            arm.steps_equal = round(budget * arm.rates[args.threads[0]] / TOKENS_PER_STEP)
            _, result = run(arm, data, arm.steps_equal, args.threads[0], 0)
            arm.bits_equal = result["bits_per_byte"]
            print(f"{arm.name}: {arm.bits_equal:.3f} bits per byte at equal CPU time", flush=True)

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(equal, found))
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    peers = versions(args.peer_python) if args.peer_python else {}
    text = (
        f"{table(found, args)}\n\nEqual CPU time: {budget:.0f} CPU-seconds of steps on {args.threads[0]} thread. "
        f"Repeats: {args.repeats}; arms at once: {args.jobs}. Processor: {cpu}. Ikirere's torch: {versions(sys.executable)['torch']}. "
        f"Peers: {', '.join(f'{k} {v}' for k, v in peers.items()) or 'none'}; nanoGPT at {args.nanogpt_commit}.\n"
    )
    print(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
