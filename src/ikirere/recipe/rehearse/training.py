"""The training of a rehearsal: phases keep their proportions and the ratio of their lengths, everything is short."""

from __future__ import annotations

from collections.abc import Callable

from ikirere.recipe.mixers import family_of
from ikirere.recipe.planner import flops
from ikirere.recipe.rehearse.changes import RecipeDraft
from ikirere.recipe.rehearse.shape import set_section, width_ratio
from ikirere.recipe.schema import Model, Recipe
from ikirere.recipe.sections import Phase, Training

# What two cores do with models of about a million weights: large products reach 75 GFLOP/s a core, small
# ones and everything between them cost about half of that.
RATE = 60e9
PRETRAIN_SECONDS, SFT_SECONDS, DPO_SECONDS = 150.0, 60.0, 20.0  # of ten minutes
STEP_TOKENS, LEAST_TOKENS = 4096, 512  # tokens per optimiser step of the first phase, and where time is short
SHORT, ALONE = 64, 128  # shortest sequence length: of several, of one
SPREAD = 8  # longest over shortest, at most
CHAT_LENGTH = 384  # a conversation with tools in a small vocabulary
MIN_STEPS, MAX_STEPS = 40, 1500
MAX_RATE = 0.01  # highest rate of AdamW
HELDOUT_PAIRS = 40
EVALUATE_BYTES = 15_000  # held-out bytes per domain, at every milestone


def lengths(phases: tuple[Phase, ...]) -> list[int]:
    """Sequence lengths in the ratio of the recipe's, the shortest one SHORT."""
    shortest = min(p.sequence_length for p in phases)
    several = len({p.sequence_length for p in phases}) > 1
    unit = SHORT if several else min(ALONE, shortest)
    ratios = [min(p.sequence_length / shortest, SPREAD) for p in phases]
    return [max(16, round(unit * ratio / 16) * 16) for ratio in ratios]


def scale_steps(parts: list[int], total: int) -> list[int]:
    """Steps of each phase in proportion, at least two each."""
    whole = sum(parts)
    return [max(2, round(part / whole * total)) for part in parts]


def move_step(step: int, before: list[int], after: list[int]) -> int:
    """The step of the rehearsal at the same share of the same phase; ends of phases fall on ends of phases."""
    start_before = start_after = 0
    for old, new in zip(before, after):
        if step <= start_before + old:
            return max(1, start_after + round((step - start_before) / old * new))
        start_before += old
        start_after += new
    return start_after


def plan_steps(budget: float, full: int, least: int, batches: Callable[[int], float]) -> tuple[int, int]:
    """(steps, tokens per step) within `budget` operations. `batches`: operations of a mean step by its tokens.
    Where few minutes would leave fewer than `least` steps, the steps become smaller instead."""
    tokens = STEP_TOKENS
    while budget / batches(tokens) < min(least, full) and tokens > LEAST_TOKENS:
        tokens //= 2
    return min(full, MAX_STEPS, max(least // 2, int(budget / batches(tokens)))), tokens


def shrink_pretrain(draft: RecipeDraft, recipe: Recipe, model: Model, minutes: float) -> None:
    """Shrink `pretrain` to its share of the time on the shrunk model."""
    p = recipe.pretrain
    short = lengths(p.phases)
    first = p.phases[0].batch_size * p.phases[0].sequence_length

    def batches(tokens: int) -> list[int]:
        ratios = (phase.batch_size * phase.sequence_length / first for phase in p.phases)
        return [max(1, round(tokens * ratio / length)) for ratio, length in zip(ratios, short)]

    def cost(tokens: int) -> float:
        return sum(
            phase.steps / p.steps * batch * length * flops.training_per_token(model, length, phase.attention)
            for phase, batch, length in zip(p.phases, batches(tokens), short)
        )

    parts = [phase.steps for phase in p.phases]
    total, tokens = plan_steps(PRETRAIN_SECONDS * minutes / 10 * RATE, p.steps, MIN_STEPS, cost)
    sizes = batches(tokens)
    steps = parts if total == p.steps else scale_steps(parts, total)
    for i, phase in enumerate(p.phases):
        key = f"pretrain.phases.{i}"
        draft.set(f"{key}.steps", steps[i], f"{phase.steps / p.steps:.1%} of all steps, as in the recipe")
        draft.set(f"{key}.sequence_length", short[i], "lengths stay in ratio")
        draft.set(f"{key}.batch_size", sizes[i], "tokens per step stay in ratio")
        draft.set(f"{key}.context_parallel", 1, "one process")
    for i, milestone in enumerate(p.milestones):
        moved = move_step(milestone.step, parts, steps)
        draft.set(f"pretrain.milestones.{i}.step", moved, "the same share of the same phase")
    family = family_of(model)
    text = EVALUATE_BYTES // (4 if family.answer_passes > 1 else 1)
    draft.set("pretrain.evaluate_bytes", min(p.evaluate_bytes, text), "little text")
    if p.evaluate_every and p.milestones:
        draft.set(
            "pretrain.evaluate_every", None, "milestones measure the same, and measuring takes its time"
        )
    elif p.evaluate_every:
        every = max(round(p.evaluate_every / p.steps * sum(steps)), sum(steps) // 2, 1)
        draft.set("pretrain.evaluate_every", every, "the same share of the steps, twice at most")
    fewer = family.for_fewer_steps(p.steps / sum(steps))
    rule = "the average reaches back over the same share of the steps"
    set_section(draft, f"mixers.{model.family}", family, fewer, rule)
    _shrink_common(draft, "pretrain", p, p.steps, sum(steps), width_ratio(recipe.model, model))


def chat_length(recipe: Recipe) -> int:
    """Sequence length of SFT and DPO."""
    sections = [s.sequence_length for s in (recipe.sft, recipe.dpo) if s is not None]
    return min([CHAT_LENGTH, *sections])


def shrink_sft(draft: RecipeDraft, recipe: Recipe, model: Model, minutes: float) -> None:
    """Shrink `sft` to its share of the time."""
    s = recipe.sft
    if s is None:
        return
    length = min(s.sequence_length, CHAT_LENGTH)
    each = length * flops.training_per_token(model, length)

    def batch_of(tokens: int) -> int:
        return max(1, min(s.batch_size, tokens // length))

    budget = SFT_SECONDS * minutes / 10 * RATE
    steps, tokens = plan_steps(budget, s.steps, MIN_STEPS, lambda tokens: batch_of(tokens) * each)
    batch = batch_of(tokens)
    draft.set("sft.steps", steps, "its share of the time")
    draft.set("sft.sequence_length", length, "long enough for a conversation with tools")
    draft.set("sft.batch_size", batch, f"about {tokens} tokens per step")
    draft.set("sft.rows", min(s.rows, max(500, steps * batch * 4)), "as many as are seen")
    _shrink_common(draft, "sft", s, s.steps, steps, width_ratio(recipe.model, model))


def shrink_dpo(draft: RecipeDraft, recipe: Recipe, model: Model, minutes: float) -> None:
    """Shrink `dpo` to its share of the time."""
    d = recipe.dpo
    if d is None:
        return
    length = min(d.sequence_length, CHAT_LENGTH)
    pair = 2 * length * (flops.training_per_token(model, length) + flops.forward_per_token(model, length))

    def batch_of(tokens: int) -> int:
        return max(1, min(d.batch_size, tokens // (2 * length)))

    budget = DPO_SECONDS * minutes / 10 * RATE
    steps, tokens = plan_steps(budget, d.steps, MIN_STEPS // 2, lambda tokens: batch_of(tokens) * pair)
    batch = batch_of(tokens)
    draft.set("dpo.steps", steps, "its share of the time")
    draft.set("dpo.sequence_length", length, "long enough for a conversation with tools")
    draft.set("dpo.batch_size", batch, "few pairs per step")
    draft.set("dpo.pairs", min(d.pairs, steps * batch), "each pair once")
    draft.set("dpo.heldout_pairs", min(d.heldout_pairs, HELDOUT_PAIRS), "few")
    _shrink_common(draft, "dpo", d, d.steps, steps, width_ratio(recipe.model, model))


def _shrink_common(draft: RecipeDraft, key: str, t: Training, before: int, after: int, width: float) -> None:
    """What all training sections share."""
    for part in ("warmup", "decay"):
        value = getattr(t.schedule, part)
        if value >= 1:
            draft.set(f"{key}.schedule.{part}", value / before, "the same share of the steps")
    lr = t.optimizer.lr
    if width > 1 and lr < MAX_RATE:
        rule = "AdamW's rate goes with 1/width (Yang et al. 2022)"
        draft.set(f"{key}.optimizer.lr", float(f"{min(lr * width, MAX_RATE):.3g}"), rule)
    draft.set(f"{key}.parallel", "none", "one process")
    draft.set(f"{key}.precision", "auto", "what is faster here")
    draft.set(f"{key}.activation_checkpointing", False, "a small model fits without it")
    draft.set(f"{key}.micro_batch_size", None, "the batch is small")
    every = max(round(t.checkpoint_every / before * after), after // 6, 1)
    draft.set(
        f"{key}.checkpoint_every", min(every, t.checkpoint_every), "the same share of the steps, six at most"
    )
    draft.set(f"{key}.log_every", min(t.log_every, max(1, after // 50)), "about fifty points of a curve")
