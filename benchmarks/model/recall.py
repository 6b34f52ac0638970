"""Multi-query associative recall and needles, at the length of training and at 2 and 4 times it.

The task (Arora et al. 2023, arXiv 2312.04927, section 3): key-value pairs, and later keys whose values are asked for. A
row is slots of two tokens: a pair that is defined, a key with its value again (the loss is on that value), or filler.

Training: 1 to --pairs pairs defined anywhere in the first half of a row, asked for anywhere behind. To learn it, attention
needs two layers that fit each other (the value's place must hold its key before a question can find it), which tiny models
find only after millions of tokens. So all arms go through the same three stages: rows whose pairs are one token each
(`fused`, followed by filler), which one layer can answer, of half the --length; a growing share of real pairs; real pairs
only, of --length tokens, up to twice as many (as many as the first half holds). Hybrid layers run as full attention in the
first two stages, as a curriculum of lengths has it.

Tests, at lengths T = 1, 2, 4 times --length and with real pairs only: all definitions in the first quarter, each key asked
once in the last quarter, filler between, so that at least T / 2 tokens lie between a value and its question.

* needle: one pair.  * needles: --pairs pairs.  * MQAR: T / 16 pairs, so that their number grows with the length.

Example:
    python benchmarks/model/recall.py --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Clock, Drawn, finish, machine, parser, rows, shown, trained, wilson

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.tokens.batch import IGNORE, Batch

NAME = "recall.py"
KEYS, VALUES, FILLERS = 16, 16, 4
FUSED = KEYS + VALUES + FILLERS  # the first of KEYS * VALUES tokens that are a pair each
WIDTH, HEADS = 64, 2
TIMES = (1, 2, 4)
FIRST, MIXED = 0.45, 0.65  # shares of the steps: until then only fused pairs, and until then some
TASKS = {
    "needle": "One needle",
    "needles": "{pairs} needles",
    "MQAR": "MQAR, one pair for every 16 tokens",
}


Mixers = dict[str, dict[str, Any]]


class Arm(NamedTuple):
    pattern: str
    mixers: Mixers
    layers: int = 2
    share: float = 1.0  # of --steps; what learns the stages sooner, or never, gets fewer
    after: dict[str, Mixers] | None = None  # more rows of the same weights: added to the name, other settings
    first: str | None = None  # pattern as which it runs in the first two stages


WINDOW: Mixers = {"window": {"window": 8}}
NOPE: Mixers = {"full": {"rope": False}}
KDA: Mixers = {"kda": {"head_dim": 16, "chunk_size": 32}}
HYBRID: Mixers = {
    "hybrid": {
        "window": 16, "block_size": 8, "top_k": 4, "rope_scaling": "none", "selection_weight": 1.0
    }
}  # fmt: skip
UNTAUGHT = {"hybrid": HYBRID["hybrid"] | {"selection_weight": 0.0}}
HYBRID_NOPE = {"hybrid": HYBRID["hybrid"] | {"rope": False}}
EVERY = {"hybrid": HYBRID["hybrid"] | {"top_k": 64}}  # nothing is left to the summaries' choice
SMALL = {"hybrid": HYBRID["hybrid"] | {"block_size": 4, "top_k": 8}}
WIDE = {"kda": KDA["kda"] | {"head_dim": 32}}  # four times the state
YARN = {"rope_scaling": "yarn"}
FULL_AFTER: dict[str, Mixers] = {", YaRN afterwards": {"full": YARN}}
HYBRID_AFTER: dict[str, Mixers] = {
    ", YaRN afterwards": {"hybrid": YARN},
    ", YaRN and top 8 afterwards": {"hybrid": YARN | {"top_k": 8}},
    ", YaRN and all blocks afterwards": {"hybrid": YARN | {"top_k": 64}},
}
ARMS: dict[str, Arm] = {
    "window alone": Arm("window", WINDOW, share=0.25),
    "window, full without RoPE, 1:1": Arm("window full", WINDOW | NOPE, share=0.5),
    "window, full with RoPE, 1:1": Arm("window full", WINDOW, share=0.5, after=FULL_AFTER),
    "window, hybrid, 1:1": Arm("window hybrid", WINDOW | HYBRID, after=HYBRID_AFTER, first="window full"),
    "KDA, full without RoPE, 3:1": Arm("kda*3 full", KDA | NOPE, layers=4, share=0.75),
}
FURTHER: dict[str, Arm] = {  # for information, only where they are named
    "full with RoPE": Arm("full", {}, after=FULL_AFTER),
    "window, hybrid without selection loss, 1:1": Arm(
        "window hybrid", WINDOW | UNTAUGHT, after=HYBRID_AFTER, first="window full"
    ),
    "window, hybrid from the first step, 1:1": Arm("window hybrid", WINDOW | HYBRID, after=HYBRID_AFTER),
    "window, hybrid without RoPE, 1:1": Arm("window hybrid", WINDOW | HYBRID_NOPE, first="window full"),
    "hybrid in every layer": Arm("hybrid", HYBRID, after=HYBRID_AFTER, first="full"),
    "window, hybrid of all blocks, 1:1": Arm("window hybrid", WINDOW | EVERY, after=HYBRID_AFTER),
    "window, hybrid of blocks of 4, top 8, 1:1": Arm(
        "window hybrid", WINDOW | SMALL, after=HYBRID_AFTER, first="window full"
    ),
    "KDA, full without RoPE, 3:1, all steps": Arm("kda*3 full", KDA | NOPE, layers=4),
    "KDA of heads of 32, full without RoPE, 3:1": Arm("kda*3 full", WIDE | NOPE, layers=4),
    "KDA alone": Arm("kda", KDA),
    "mamba2 alone": Arm("mamba2", {}),
    "retention alone": Arm("retention", {}),
}
Found = dict[str, dict[tuple[str, int], list[tuple[int, int]]]]
Costs = dict[str, list[tuple[float, int]]]


def slots(rng: np.random.Generator, count: int, length: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Filler [count, length / 2, 2], and the keys and values of each row's pairs, [count, pairs, 2]."""
    made = KEYS + VALUES + rng.integers(0, FILLERS, (count, length // 2, 2))
    keys = rng.random((count, KEYS)).argsort(1)[:, :pairs]
    values = KEYS + rng.integers(0, VALUES, (count, pairs))
    return made, np.stack((keys, values), axis=-1)


def places(rng: np.random.Generator, count: int, low: int, high: int, take: int) -> np.ndarray:
    """`take` different numbers of low..high-1 for each row, in any order: [count, take]."""
    return low + rng.random((count, high - low)).argsort(1)[:, :take]


def batch_of(made: np.ndarray, asked: np.ndarray) -> Batch:
    """Slots [B, S, 2] and which of them ask, bool [B, S] -> rows with a label at each asking key."""
    tokens = torch.from_numpy(made.reshape(len(made), -1))
    labels = np.full(made.shape, IGNORE)
    labels[asked, 0] = made[asked, 1]
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return Batch(tokens, torch.from_numpy(labels.reshape(tokens.shape)), positions)


def training_batch(
    rng: np.random.Generator, count: int, length: int, pairs: int, fused: float = 0.0
) -> Batch:
    """fused: share of the rows whose pairs are one token."""
    made, given = slots(rng, count, length, pairs)
    row = np.arange(count)[:, None]
    where = places(rng, count, 0, length // 4, pairs)
    one = (rng.random((count, 1)) < fused)[..., None]
    single = np.stack((FUSED + given[..., 0] * VALUES + given[..., 1] - KEYS, made[row, where, 1]), axis=-1)
    made[row, where] = np.where(one, single, given)
    chosen = rng.integers(0, pairs, made.shape[:2])
    asked = np.arange(length // 2) > where[row, chosen]
    asked[row, where] = False
    asked &= rng.random(made.shape[:2]) < 2 * rng.random((count, 1))  # half of the rows are full of questions
    made[asked] = given[row, chosen][asked]
    return batch_of(made, asked)


def test_batch(rng: np.random.Generator, count: int, length: int, pairs: int) -> Batch:
    made, given = slots(rng, count, length, pairs)
    quarter, row = length // 8, np.arange(count)[:, None]
    made[row, places(rng, count, 0, quarter, pairs)] = given
    where = places(rng, count, length // 2 - quarter, length // 2, pairs)
    made[row, where] = given
    asked = np.zeros(made.shape[:2], dtype=bool)
    asked[row, where] = True
    return batch_of(made, asked)


@torch.no_grad()
def right(model: Decoder, batch: Batch) -> tuple[int, int]:
    """Questions answered rightly, and all."""
    hits = total = 0
    for part in batch.split(max(1, 16_384 // batch.tokens.shape[1])):
        used = part.labels != IGNORE
        hidden = model.hidden(part.tokens)[used]
        hits += int(((hidden @ model.output_weight.T).argmax(-1) == part.labels[used]).sum())
        total += int(used.sum())
    return hits, total


def shape(arm: Arm, length: int, other: Mixers | None = None) -> ModelConfig:
    """other: settings of mixers beside the arm's own, with the training's length as what YaRN stretches."""
    mixers = {name: dict(settings) for name, settings in arm.mixers.items()}
    for name, settings in (other or {}).items():
        changed = mixers.get(name, {}) | settings
        mixers[name] = changed | {"original_max_position_embeddings": length}
    return ModelConfig(
        vocab_size=FUSED + KEYS * VALUES, hidden_size=WIDTH, num_hidden_layers=arm.layers, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=WIDTH, max_position_embeddings=length * max(TIMES),
        layer_pattern=arm.pattern, mixers=mixers, initializer_range=0.1, rope_theta=1e6, tie_word_embeddings=False,
    )  # fmt: skip


def answers(model: Decoder, args: argparse.Namespace, seed: int) -> dict[tuple[str, int], tuple[int, int]]:
    """Right answers and questions by task and times."""
    found = {}
    for times in TIMES:
        length = times * args.length
        for task, pairs in (("needle", 1), ("needles", args.pairs), ("MQAR", max(1, length // 16))):
            rng = np.random.default_rng((10_000, seed, times, pairs))
            found[task, times] = right(model, test_batch(rng, max(1, args.questions // pairs), length, pairs))
    return found


def run(name: str, arm: Arm, args: argparse.Namespace, seed: int, found: Found) -> tuple[float, int]:
    """One training, tested into the arm's rows of `found`. Returns (CPU-seconds of training, parameters)."""

    def draw(rng: np.random.Generator, step: int) -> Batch:
        done = step / steps
        fused = 1 - min(1.0, max(0.0, (done - FIRST) / (MIXED - FIRST)))
        shorter = 2 if fused else 1  # so that all steps have the same number of tokens
        most = args.pairs if fused else 2 * args.pairs
        count, pairs = args.batch * shorter // 2, int(rng.integers(1, most + 1))
        return training_batch(rng, count, args.length // shorter, pairs, fused)

    def before(done: int, model: Decoder) -> None:
        pattern = arm.first if arm.first and done < MIXED * steps else arm.pattern
        if model.attention != pattern:
            model.set_attention(pattern)

    steps = max(1, round(arm.share * args.steps))
    began = time.process_time()
    model, _ = trained(shape(arm, args.length), Drawn(draw, seed), steps, args.lr, seed, None, before)
    spent = time.process_time() - began
    models = {name: model}
    for label, other in (arm.after or {}).items():
        models[name + label] = Decoder(shape(arm, args.length, other)).eval()
        models[name + label].load_state_dict(model.state_dict())
    for row, tested in models.items():
        figures = answers(tested, args, seed)
        for key, value in figures.items():
            found[row][key].append(value)
        shares = {f"{task} {times}x": round(100 * h / n, 1) for (task, times), (h, n) in figures.items()}
        print(row, seed, f"{spent:.0f} s", shares, file=sys.stderr, flush=True)
    return spent, model.num_parameters()


def cell(answered: list[tuple[int, int]]) -> str:
    """Share of right answers over all seeds with its Wilson interval, and the lowest seed where there are several."""
    hits, total = (sum(column) for column in zip(*answered, strict=True))
    low, high = wilson(hits, total, 0.95)
    text = f"{100 * hits / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return text if len(answered) == 1 else f"{text}, lowest {100 * min(h / n for h, n in answered):.1f}"


def written_out(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def section(found: Found, costs: Costs, args: argparse.Namespace, clock: Clock) -> str:
    text = "## Associative recall" + ": further arms" * (args.section != NAME) + "\n"
    for task, what in TASKS.items():
        head = ["arm", *(f"{times * args.length} tokens ({times}x)" for times in TIMES)]
        body = [[name, *(cell(answered[task, times]) for times in TIMES)] for name, answered in found.items()]
        text += f"\n{what.format(pairs=args.pairs)}, right answers in %:\n\n{rows(head, body)}"
    known = ARMS | FURTHER
    sums = [
        [
            name,
            f"`{known[name].pattern}`",
            "; ".join(f"{mixer}: {written_out(v)}" for mixer, v in known[name].mixers.items()) or "-",
            str(known[name].layers),
            f"{known[name].share * args.steps:,.0f}",
            f"{cost[0][1]:,}",
            shown([c for c, _ in cost], 0),
        ]
        for name, cost in costs.items()
    ]
    text += "\n" + rows(
        ["arm", "layer pattern", "settings", "layers", "steps", "parameters", "training, CPU-seconds"], sums
    )
    text += (
        f"\nWidth {WIDTH}, {HEADS} heads, RoPE base 1,000,000; steps of "
        f"{args.batch} rows of {args.length // 2} tokens in the first stages and {args.batch // 2} of {args.length} in the last, at most "
        f"{args.pairs} pairs, {2 * args.pairs} in the last (stages: --help); {KEYS} keys, {VALUES} values (chance {100 / VALUES:.1f}%, or one in the "
        "number of pairs for who knows the row's values). All questions stand at least half a test's length behind their "
        "values. Right answers over all seeds, 95% Wilson interval, and the worst seed; CPU-seconds as mean ± half the "
        "95% t interval. Afterwards: the same weights, changed for the test only.\n\n"
    )
    return text + machine(args, clock)


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--length", type=int, default=64, help="tokens of a training row; a multiple of 16")
    made.add_argument("--pairs", type=int, default=8, help="most pairs of a training row; at most length / 8")
    made.add_argument(
        "--batch", type=int, default=32, help="rows of the first stages; half as many in the last"
    )
    made.add_argument("--steps", type=int, default=2000)
    made.add_argument("--lr", type=float, default=3e-3)
    made.add_argument("--questions", type=int, default=512, help="of each test and seed")
    made.add_argument("--arms", nargs="+", choices=[*ARMS, *FURTHER], default=list(ARMS))
    made.add_argument(
        "--section", default=NAME, help="marker in the file, for a table of further arms beside the first"
    )
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    found: Found = defaultdict(lambda: defaultdict(list))
    costs: Costs = {name: [] for name in args.arms}
    clock = Clock(args.minutes, processor=True)
    while clock.another(args.seeds):
        for name in args.arms:
            costs[name].append(run(name, (ARMS | FURTHER)[name], args, clock.rounds - 1, found))
    finish(args, args.section, section(found, costs, args, clock))


if __name__ == "__main__":
    main()
