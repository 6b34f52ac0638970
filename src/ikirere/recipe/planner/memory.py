"""Memory per device: weights, gradients, optimiser, activations, logits, and the KV cache when serving."""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.mixers import family_of
from ikirere.recipe.planner import constants as c
from ikirere.recipe.planner.counts import Counts, count
from ikirere.recipe.planner.hardware import Device
from ikirere.recipe.schema import Model, Recipe
from ikirere.recipe.sections import Optimizer, Training


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a stage or phase trains. The reference of DPO is asked before training begins,
    so no second model is held."""

    where: str
    process: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.logits)
        return self.process + sum(parts)


@dataclass(frozen=True)
class Cache:
    """Bytes of the decode state at the served context."""

    context: int
    bits: int
    per_sequence: float
    max_num_seqs: int

    @property
    def total(self) -> float:
        return self.per_sequence * self.max_num_seqs


def working_precision(recipe: Recipe, training: Training) -> str:
    """`auto` means the hardware's; a CPU computes in fp32 (bf16 is emulated there)."""
    if recipe.hardware.device == "cpu":
        return "fp32"
    return recipe.hardware.precision if training.precision == "auto" else training.precision


def optimizer_bytes(counts: Counts, optimizer: Optimizer) -> float:
    """AdamW keeps two fp32 moments of all weights; Muon keeps one momentum of the 2-D hidden weights."""
    muon = counts.hidden_2d if optimizer.name == "muon" else 0
    return c.FP32 * (2 * (counts.total - muon) + muon)


def layer_elements(m: Model, mixer: str, ffn: str, length: int, packed: bool) -> tuple[float, float]:
    """(fp32 elements, elements in working precision) that one layer keeps per token for the backward pass."""
    own = m.mixer(mixer).activation_elements(m, length, packed)
    more = m.ffn(ffn).activation_elements(m, length, packed)
    return c.NORM_PER_HIDDEN * m.hidden_size + c.PER_TOKEN + own[0] + more[0], own[1] + more[1]


def activation_bytes(
    m: Model, pattern: str | None, length: int, tokens: int, precision: str, checkpointing: bool, packed: bool
) -> float:
    """Bytes kept for the backward pass of `tokens` tokens on one device, at its highest."""
    half = c.FP32 if precision == "fp32" else c.HALF
    both = family_of(m).both_directions
    layers = list(zip(m.run_as(pattern or m.layer_pattern), m.ffn_kinds))

    def bytes_of(single: float, working: float) -> float:
        return c.FP32 * single + half * working

    kept = [bytes_of(*layer_elements(m, *layer, length, packed)) for layer in layers]
    backward = half * c.BACKWARD_FEED_FORWARD * max(m.ffn(kind).width(m) for _, kind in layers)
    if checkpointing:  # each layer's input, one layer opened again, and the one before it not yet freed
        total = len(layers) * c.FP32 * m.hidden_size + 2 * max(kept) + backward
    else:
        total = sum(kept) + backward
    for name, _ in layers:  # the second direction
        if both and m.mixer(name).one_direction:
            single, working = m.mixer(name).activation_elements(m, length, packed)
            total += bytes_of(single + c.PER_TOKEN, working)
    return tokens * total


def logits_bytes(m: Model, tokens: int, cpu: bool) -> float:
    """One chunk of logits, and the gradients of the hidden states and of the head."""
    chunk = c.LOGITS_CHUNK_CPU if cpu else c.LOGITS_CHUNK_CARD
    rows = min(tokens, max(c.LOGITS_LEAST_ROWS, chunk // (c.FP32 * m.vocab_size)))
    copies = c.FP32 if cpu else c.FP32 + c.LOGITS_CARD_COPIES * c.HALF
    return rows * m.vocab_size * copies + (tokens + m.vocab_size) * m.hidden_size * c.FP32


def _weights(counts: Counts, precision: str) -> float:
    """fp32 master weights, and the copy that the matrix products read."""
    return counts.total * (c.FP32 + {"fp32": 0, "fp8": c.FP8}.get(precision, c.HALF))


def _training(
    recipe: Recipe,
    device: Device,
    where: str,
    training: Training,
    counts: Counts,
    length: int,
    sequences: int,
    pattern: str | None = None,
    context_parallel: int = 1,
) -> Memory:
    precision = working_precision(recipe, training)
    share = recipe.hardware.count if training.parallel == "fsdp" else 1
    micro = training.micro_batch_size or sequences
    tokens = micro * length // context_parallel
    packed = device.is_cpu  # cards run variable-length kernels, which need no mask
    family = family_of(recipe.model)
    activations = activation_bytes(
        recipe.model,
        pattern,
        length,
        tokens,
        precision,
        training.activation_checkpointing,
        packed,
    )
    activations *= family.training_passes[1]  # those whose graph is kept
    carried = c.FP32 * family.training_elements(recipe.model, counts.total, sequences, length)
    parts = {
        "weights": _weights(counts, precision) / share + carried,
        "gradients": counts.total * c.FP32 / share,
        "optimizer": optimizer_bytes(counts, training.optimizer) / share,
        "activations": activations,
        "logits": logits_bytes(recipe.model, tokens, device.is_cpu),
    }
    if device.is_cpu:
        state = parts["weights"] + parts["gradients"] + parts["optimizer"]
        slack = (c.CPU_HEAP - 1) * activations + (c.CPU_STATE - 1) * state
        return Memory(where, c.CPU_PROCESS + c.CPU_WORKING + c.CPU_PIPELINE + slack, **parts)
    slack = c.CARD_FRAGMENTATION * sum(parts.values())
    return Memory(where, c.CARD_CONTEXT + slack, **parts)


def training_memory(recipe: Recipe, device: Device) -> list[Memory]:
    """One entry per phase of pretraining, and one each for SFT and DPO."""
    patterns = tuple(p.attention for p in recipe.pretrain.phases if p.attention)
    counts = count(recipe.model, patterns)
    devices = recipe.hardware.count
    result = []
    for p in recipe.pretrain.phases:
        groups = max(1, devices // p.context_parallel)
        result.append(
            _training(
                recipe,
                device,
                f"pretrain/{p.name}",
                recipe.pretrain,
                counts,
                p.sequence_length,
                max(1, p.batch_size // groups),
                p.attention,
                p.context_parallel,
            )
        )
    if recipe.sft is not None and "sft" in recipe.stages:
        s = recipe.sft
        result.append(
            _training(recipe, device, "sft", s, counts, s.sequence_length, max(1, s.batch_size // devices))
        )
    if recipe.dpo is not None and "dpo" in recipe.stages:
        d = recipe.dpo
        pairs = max(1, d.batch_size // devices)
        micro = d.model_copy(update={"micro_batch_size": 2 * (d.micro_batch_size or pairs)})
        result.append(_training(recipe, device, "dpo", micro, counts, d.sequence_length, 2 * pairs))
    return result


def cache_memory(recipe: Recipe) -> Cache:
    """The decode state at the served context."""
    m, serve = recipe.model, recipe.serve
    context = serve.max_model_len or m.max_position_embeddings
    total = sum(m.mixer(name).state_bytes(m, context, serve.kv_cache_bits) for name in m.layers)
    return Cache(context, serve.kv_cache_bits, total, serve.max_num_seqs)
