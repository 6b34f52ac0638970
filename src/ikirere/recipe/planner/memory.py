"""Memory per device: weights, gradients, optimiser, activations, logits, and the KV cache when serving."""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.mixers import Hybrid, Kda, Mamba2, Mla, Recursive, Retention, Window, layers
from ikirere.recipe.planner import constants as c
from ikirere.recipe.planner.counts import Counts, count
from ikirere.recipe.planner.flops import mean_blocks
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


def layer_elements(m: Model, name: str, length: int, packed: bool) -> tuple[float, float]:
    """(fp32 elements, elements in working precision) that one layer keeps per token for the backward pass."""
    q, kv = m.num_attention_heads * m.head_size, m.num_key_value_heads * m.head_size
    heads = m.num_attention_heads
    norms = float(c.NORM_PER_HIDDEN * m.hidden_size + c.PER_TOKEN)
    inner = float(c.FEED_FORWARD_COPIES * m.intermediate_size)
    if name == "kda":
        k = m.mixer("kda")
        assert isinstance(k, Kda)
        heads, rank = k.num_heads or heads, k.gate_rank or k.head_dim
        norms += heads * (c.KDA_COPIES * k.head_dim + c.KDA_SQUARES * k.chunk_size + c.KDA_PER_HEAD)
        norms += heads * k.head_dim * k.head_dim / k.chunk_size
        if packed:  # which pairs are of one document, and one square that it masks
            norms += (heads + 1) * k.chunk_size
        return norms, inner + heads * k.head_dim + 2 * rank
    if name == "mla":
        latent = m.mixer("mla")
        assert isinstance(latent, Mla)
        s = latent.sizes(m.head_size)
        key, widest = s.nope + s.shared, max(s.nope + s.shared, s.value)
        norms += c.PER_HEAD * heads + 1 + s.rank + s.shared + (c.MASK_PER_PAIR * length if packed else 0)
        # Query, key and output at the kernel's width; value, padded or as it lies beside the keys; the latent.
        inner += heads * (3 * widest + (key + s.value if s.value < key else s.nope + s.value))
        inner += s.rank + s.shared + 2 * s.query_rank
        return norms, inner
    if name == "mamba2":
        mamba = m.mixer("mamba2")
        assert isinstance(mamba, Mamba2)
        w = mamba.sizes(m.hidden_size)
        norms += c.MAMBA2_COPIES * w.width + w.heads * (c.MAMBA2_PER_HEAD + w.chunk) + w.groups
        norms += c.MAMBA2_STATE_COPIES * w.groups * w.state + w.width * w.state / w.chunk
        norms += (w.width if w.groups > 1 else 0) + (c.DOCUMENT_PLACES if packed else 0)
        return norms, inner + w.width + w.channels + w.heads
    if name == "retention":
        retention = m.mixer("retention")
        assert isinstance(retention, Retention)
        t = retention.sizes(heads, m.head_size)
        norms += t.heads * (c.RETENTION_VALUE_COPIES * t.value + 2 * t.key + c.RETENTION_PER_HEAD + t.chunk)
        norms += t.heads * t.key * t.value / t.chunk + (c.DOCUMENT_PLACES if packed else 0)
        return norms, inner + 2 * t.heads * t.value
    inner += c.QUERY_COPIES * q + c.KEY_VALUE_COPIES * kv
    norms += c.PER_HEAD * heads
    if m.qk_norm:
        norms += c.QK_NORM_COPIES * (q + kv) + heads + m.num_key_value_heads
    if name == "hybrid":
        h = m.mixer("hybrid")
        assert isinstance(h, Hybrid)
        # Keys before they are turned; summaries. Logits, their weights, logarithms; who chose which block; where each
        # token looks. No mask: documents are told by numbers.
        inner += kv + 2 * kv / h.block_size
        norms += c.HYBRID_PER_KEY_HEAD * m.num_key_value_heads + c.HYBRID_PER_TOKEN
        blocks = mean_blocks(length, h.window, h.block_size, h.top_k)
        return norms + m.num_key_value_heads * blocks, inner
    if packed:
        norms += c.MASK_PER_PAIR * length
    return norms, inner


def activation_bytes(
    m: Model, pattern: str | None, length: int, tokens: int, precision: str, checkpointing: bool, packed: bool
) -> float:
    """Bytes kept for the backward pass of `tokens` tokens on one device, at its highest."""
    half = c.FP32 if precision == "fp32" else c.HALF
    names = layers(pattern, m.num_hidden_layers) if pattern else m.layers

    def bytes_of(name: str) -> float:
        single, working = layer_elements(m, name, length, packed)
        return c.FP32 * single + half * working

    widest = max(bytes_of(name) for name in names)
    backward = half * c.BACKWARD_FEED_FORWARD * m.intermediate_size
    if checkpointing:  # each layer's input, one layer opened again, and the one before it not yet freed
        return tokens * (len(names) * c.FP32 * m.hidden_size + 2 * widest + backward)
    return tokens * (sum(bytes_of(name) for name in names) + backward)


def logits_bytes(m: Model, tokens: int, cpu: bool) -> float:
    """One chunk of logits, and the gradients of the hidden states and of the head."""
    chunk = c.LOGITS_CHUNK_CPU if cpu else c.LOGITS_CHUNK_CARD
    rows = min(tokens, max(c.LOGITS_LEAST_ROWS, chunk // (c.FP32 * m.vocab_size)))
    copies = c.FP32 if cpu else c.FP32 + c.LOGITS_CARD_COPIES * c.HALF
    return rows * m.vocab_size * copies + (tokens + m.vocab_size) * m.hidden_size * c.FP32


def _weights(counts: Counts, precision: str) -> float:
    """fp32 master weights, and the copy that the matrix products read."""
    return counts.total * (c.FP32 + {"fp32": 0, "fp8": c.FP8}.get(precision, c.HALF))


def _reversed(m: Model, length: int, precision: str, packed: bool) -> float:
    """Bytes per token that KDA layers keep of their second direction, what is not theirs taken out."""
    half = c.FP32 if precision == "fp32" else c.HALF
    inner, norms = c.FEED_FORWARD_COPIES * m.intermediate_size, c.NORM_PER_HIDDEN * m.hidden_size
    total = 0.0
    for name in m.layers:
        if name == "kda":
            single, working = layer_elements(m, name, length, packed)
            total += c.FP32 * (single - norms) + half * (working - inner)
    return total


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
    recursive = recipe.model.family == "recursive"
    activations = activation_bytes(
        recipe.model,
        pattern,
        length,
        tokens,
        precision,
        training.activation_checkpointing,
        packed,
    )
    kept = 0.0
    if recursive:  # only the last cycle keeps a graph: n+1 calls of the core, in which KDA runs both ways
        settings = recipe.model.mixer("recursive")
        assert isinstance(settings, Recursive)
        if settings.bidirectional:
            activations += _reversed(recipe.model, length, precision, packed) * tokens
        activations *= settings.inner_updates + 1
        # The average of the weights, and y and z of every row that is carried.
        places = sequences * (length + settings.puzzle_tokens)
        kept = c.FP32 * (counts.total + 2 * places * recipe.model.hidden_size)
    parts = {
        "weights": _weights(counts, precision) / share + kept,
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
    """Keys and values at the served context. Windows keep their window, latent attention its latents, hybrid
    attention summaries and the logits of one block too, KDA, Mamba-2 and
    retention a fixed fp32 state."""
    m, serve = recipe.model, recipe.serve
    context = serve.max_model_len or m.max_position_embeddings
    width = 2 * m.num_key_value_heads * m.head_size * serve.kv_cache_bits / 8
    total = 0.0
    for name in m.layers:
        if name == "kda":
            k = m.mixer("kda")
            assert isinstance(k, Kda)
            heads = k.num_heads or m.num_attention_heads
            state = heads * k.head_dim * k.head_dim + 3 * heads * k.head_dim * (k.conv_size - 1)
            total += state * c.FP32
        elif name == "mamba2":
            mamba = m.mixer("mamba2")
            assert isinstance(mamba, Mamba2)
            s2 = mamba.sizes(m.hidden_size)
            total += (s2.width * s2.state + s2.channels * (s2.conv_size - 1)) * c.FP32
        elif name == "retention":
            retention = m.mixer("retention")
            assert isinstance(retention, Retention)
            r = retention.sizes(m.num_attention_heads, m.head_size)
            total += r.heads * r.key * r.value * c.FP32
        elif name == "mla":
            latent = m.mixer("mla")
            assert isinstance(latent, Mla)
            s = latent.sizes(m.head_size)
            total += (s.rank + s.shared) * serve.kv_cache_bits / 8 * context
        elif name == "window":
            w = m.mixer("window")
            assert isinstance(w, Window)
            total += width * min(context, w.window + w.sinks)
        elif name == "hybrid":
            h = m.mixer("hybrid")
            assert isinstance(h, Hybrid)
            total += width * (context + -(-context // h.block_size))
            total += m.num_key_value_heads * min(h.block_size, context) * c.FP32
        else:
            total += width * context
    return Cache(context, serve.kv_cache_bits, total, serve.max_num_seqs)
