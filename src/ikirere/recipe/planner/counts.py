"""Parameters of a model, counted by formula.

What is built equals `ikirere.model.build.build_model` exactly (tested on the meta device). Mixers that are
counted here before they are built are marked so in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.ffns import Moe
from ikirere.recipe.mixers import Full, Kda, Mamba2, Mla, Mlp, Recursive, Retention, layers
from ikirere.recipe.schema import Model

BUILT = frozenset({"full", "window", "hybrid", "kda", "mla", "mlp", "recursive", "mamba2", "retention"})


@dataclass(frozen=True)
class Counts:
    """Numbers of weights. `matmul` is what every token is multiplied with: all 2-D weights but the lookup."""

    total: int
    embedding: int  # the lookup table, and the head where it is untied
    layers: int
    hidden_2d: int  # 2-D weights inside the layers, the ones Muon may own
    matmul: int
    not_built: tuple[str, ...]

    @property
    def embedding_share(self) -> float:
        return self.embedding / self.total


def _attention(m: Model) -> tuple[int, int]:
    """(2-D weights, vectors) of query, key, value and output projections."""
    q, kv = m.num_attention_heads * m.head_size, m.num_key_value_heads * m.head_size
    whole = m.qk_norm_width == "full"
    normed = (m.num_attention_heads + m.num_key_value_heads) if whole else 2
    vectors = normed * m.head_size if m.qk_norm else 0
    return 2 * m.hidden_size * q + 2 * m.hidden_size * kv, vectors


def _kda(m: Model) -> tuple[int, int]:
    """Kimi Delta Attention (Kimi Linear report; fla-core `fla/layers/kda.py`), without biases."""
    k = m.mixer("kda")
    assert isinstance(k, Kda)
    heads = k.num_heads or m.num_attention_heads
    width, rank, d = heads * k.head_dim, k.gate_rank or k.head_dim, m.hidden_size
    projections = 4 * d * width  # query, key, value, output
    gates = 2 * (d * rank + rank * width)  # decay and output gate, each down then up
    write_strength = d * heads
    vectors = 3 * width * k.conv_size + heads + width + k.head_dim  # convolutions, A_log, dt_bias, head norm
    return projections + gates + write_strength, vectors


def _mla(m: Model) -> tuple[int, int]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    settings = m.mixer("mla")
    assert isinstance(settings, Mla)
    s, heads, d = settings.sizes(m.head_size), m.num_attention_heads, m.hidden_size
    query = heads * (s.nope + s.shared)
    queries = s.query_rank * (d + query) if s.query_rank else d * query
    keys_values = d * (s.rank + s.shared) + s.rank * heads * (s.nope + s.value)
    return queries + keys_values + heads * s.value * d, s.rank + s.query_rank


def _mlp(m: Model) -> tuple[int, int]:
    """The network over positions of TRM-MLP (arXiv 2510.04871, section 4.5)."""
    settings, recursive = m.mixer("mlp"), m.mixer("recursive")
    assert isinstance(settings, Mlp) and isinstance(recursive, Recursive)
    positions = m.max_position_embeddings + recursive.puzzle_tokens
    return 3 * positions * settings.width(positions), 0


def _mamba2(m: Model) -> tuple[int, int]:
    """Mamba-2 (arXiv 2405.21060, section 7.1)."""
    settings = m.mixer("mamba2")
    assert isinstance(settings, Mamba2)
    s = settings.sizes(m.hidden_size)
    matrices = m.hidden_size * (2 * s.width + s.channels + s.heads)
    return matrices, s.channels * (s.conv_size + 1) + 3 * s.heads + s.width


def _retention(m: Model) -> tuple[int, int]:
    """Retention (arXiv 2307.08621, section 2.2)."""
    settings = m.mixer("retention")
    assert isinstance(settings, Retention)
    s = settings.sizes(m.num_attention_heads, m.head_size)
    return m.hidden_size * s.heads * (2 * s.key + 3 * s.value), s.value


def mixer_parameters(m: Model, name: str) -> tuple[int, int]:
    """(2-D weights, other weights) of one mixer."""
    if name == "kda":
        return _kda(m)
    if name == "mla":
        return _mla(m)
    if name == "mlp":
        return _mlp(m)
    if name == "mamba2":
        return _mamba2(m)
    if name == "retention":
        return _retention(m)
    matrices, vectors = _attention(m)
    if isinstance(settings := m.mixer(name), Full) and settings.learned_sinks:
        vectors += m.num_attention_heads
    if name == "hybrid":  # one learned query per key-value head pools a block into its summary
        vectors += m.num_key_value_heads * m.head_size
    return matrices, vectors


def ffn_parameters(m: Model, name: str, active: bool = False) -> int:
    """Weights of one feed-forward; active: those that a token meets."""
    one = 3 * m.hidden_size * m.intermediate_size
    if name != "moe":
        return one
    moe = m.ffn("moe")
    assert isinstance(moe, Moe)
    one = 3 * m.hidden_size * (moe.expert_size or m.intermediate_size)
    return (moe.top_k if active else moe.num_experts) * one + m.hidden_size * moe.num_experts


def count(m: Model, patterns: tuple[str, ...] = ()) -> Counts:
    """Count a model; `patterns` are further layer patterns it trains with (phases with `attention`)."""
    names = list(m.layers)
    extra = [layers(p, m.num_hidden_layers) for p in patterns]
    recursive = m.family == "recursive"
    kinds = m.ffn_kinds
    norms = 0 if recursive else 2 * m.hidden_size  # the recursive core's norms have no weight
    matrices = vectors = 0
    for i, name in enumerate(names):
        own = mixer_parameters(m, name)
        alternatives = [mixer_parameters(m, p[i]) for p in extra]
        matrices += max(own[0], *(a[0] for a in alternatives)) if alternatives else own[0]
        vectors += max(own[1], *(a[1] for a in alternatives)) if alternatives else own[1]
        matrices += ffn_parameters(m, kinds[i])
        vectors += norms
    idle = sum(ffn_parameters(m, k) - ffn_parameters(m, k, active=True) for k in kinds)
    final = m.hidden_size + 1 if recursive else m.hidden_size  # halting head, or the last norm
    table = m.vocab_size * m.hidden_size
    embedding = table if m.tie_word_embeddings else 2 * table
    if recursive:
        settings = m.mixer("recursive")
        assert isinstance(settings, Recursive)
        embedding += settings.puzzles * m.hidden_size
    used = {*names, *(name for p in extra for name in p), *(("recursive",) if recursive else ())}
    return Counts(
        total=embedding + matrices + vectors + final,
        embedding=embedding,
        layers=matrices + vectors,
        hidden_2d=matrices,
        matmul=matrices + table - idle,
        not_built=tuple(sorted(used - BUILT)),
    )
