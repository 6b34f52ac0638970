"""The recursive model against its published equations (arXiv 2510.04871), written out in plain tensors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ikirere.model.build import build_model
from ikirere.model.config import ModelConfig
from ikirere.model.recursive import RecursiveModel
from ikirere.tokens.batch import Batch
from ikirere.train.recursion import DeepSupervision, RecursiveTrainer

SIZES = {
    "family": "recursive",
    "vocab_size": 13,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 21,
}
RECURSION = {"inner_updates": 3, "cycles": 3, "supervision_steps": 2, "puzzle_tokens": 4, "puzzles": 5}
SHALLOW = {**RECURSION, "inner_updates": 1, "cycles": 2}  # rounding grows with every call of the core
ARMS: dict[str, dict[str, Any]] = {
    "attention": {"layer_pattern": "full", "tie_word_embeddings": False},
    "kda and attention": {
        "layer_pattern": "kda full",
        "mixers": {"kda": {"head_dim": 8, "conv_size": 4, "chunk_size": 16}},
    },
    "network over positions": {"layer_pattern": "mlp", "mixers": {"mlp": {"intermediate_size": 40}}},
}


def model_of(arm: str, dtype: torch.dtype, recursion: dict[str, int]) -> RecursiveModel:
    mixers = {**ARMS[arm].get("mixers", {}), "recursive": recursion}
    model = build_model(ModelConfig.from_dict({**SIZES, **ARMS[arm], "mixers": mixers}))
    assert isinstance(model, RecursiveModel)
    model = model.to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():  # no parameter at a value where its gradient vanishes
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.05)
        model.halt_head.bias.fill_(0.3)
    return model


# ---------------------------------------------------------------- the equations


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def swiglu(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate = x @ w[f"{name}.gate_proj.weight"].T
    up = x @ w[f"{name}.up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ w[f"{name}.down_proj.weight"].T


def rotated(x: Tensor) -> Tensor:
    """RoPE, half-split, base 10,000: x [B, P, H, D]."""
    size, half = x.shape[-1], x.shape[-1] // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = torch.arange(x.shape[1], dtype=torch.float32) * (10_000.0 ** (-2 * i / size))
        cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
        out[..., i] = x[..., i] * cos - x[..., i + half] * sin
        out[..., i + half] = x[..., i + half] * cos + x[..., i] * sin
    return out


def attention(w: dict[str, Tensor], name: str, x: Tensor, keep: Tensor) -> Tensor:
    """keep: bool [P], False on padding."""
    batch, length, _ = x.shape
    q, k, v = ((x @ w[f"{name}.{n}_proj.weight"].T).view(batch, length, 4, 8) for n in "qkv")
    scores = torch.einsum("bihd,bjhd->bhij", rotated(q), rotated(k)) / math.sqrt(8)
    scores = scores.masked_fill(keep[:, None] != keep[None, :], -torch.inf)
    y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    return y.reshape(batch, length, 32) @ w[f"{name}.o_proj.weight"].T


def kda_one_way(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Kimi Delta Attention token by token, x [B, P, 32] of real tokens in reading order."""
    batch, length, _ = x.shape

    def conv(t: Tensor, which: str) -> Tensor:
        kernel = w[f"{name}.{which}_conv.weight"].view(32, 4)
        out = torch.zeros_like(t)
        for j in range(4):
            back = 3 - j
            out[:, back:] = out[:, back:] + t[:, : length - back] * kernel[:, j]
        return (out * torch.sigmoid(out)).view(batch, length, 4, 8)

    q, k, v = (conv(x @ w[f"{name}.{n}_proj.weight"].T, n) for n in "qkv")
    q, k = (t / (t.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    q = q / math.sqrt(8)
    raw = x @ w[f"{name}.f_a_proj.weight"].T @ w[f"{name}.f_b_proj.weight"].T + w[f"{name}.dt_bias"]
    decay = torch.exp(-w[f"{name}.A_log"].exp()[:, None] * torch.log1p(raw.exp()).view(batch, length, 4, 8))
    beta = torch.sigmoid(x @ w[f"{name}.b_proj.weight"].T)
    state = x.new_zeros(batch, 4, 8, 8)
    out = []
    for t in range(length):
        state = decay[:, t, :, :, None] * state
        wrong = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + beta[:, t, :, None, None] * torch.einsum("bhk,bhv->bhkv", k[:, t], wrong)
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    y = rms(torch.stack(out, 1)) * w[f"{name}.o_norm.weight"]
    gate = torch.sigmoid(x @ w[f"{name}.g_a_proj.weight"].T @ w[f"{name}.g_b_proj.weight"].T)
    return (y.flatten(2) * gate) @ w[f"{name}.o_proj.weight"].T


def kda(w: dict[str, Tensor], name: str, x: Tensor, keep: Tensor) -> Tensor:
    """Mean of both directions, each over the real tokens alone; padding is a text of its own."""
    parts = []
    for part in (x[:, keep], x[:, ~keep]):
        if part.shape[1]:
            back = kda_one_way(w, name, part.flip(1)).flip(1)
            parts.append((kda_one_way(w, name, part) + back) / 2)
    return torch.cat(parts, 1)


def net(arm: str, w: dict[str, Tensor], x: Tensor, keep: Tensor) -> Tensor:
    for i in range(2):
        name = f"layers.{i}.mixer"
        if arm == "network over positions":
            x = x.transpose(1, 2)
            inner = x.masked_fill(~keep, 0)
            x = rms(x + swiglu(w, name, inner)).transpose(1, 2)
        elif arm == "kda and attention" and i == 0:
            x = rms(x + kda(w, name, x, keep))
        else:
            x = rms(x + attention(w, name, x, keep))
        x = rms(x + swiglu(w, f"layers.{i}.ffn", x))
    return x


def supervision_step(
    arm: str, w: dict[str, Tensor], x: Tensor, y: Tensor, z: Tensor, keep: Tensor, recursion: dict[str, int]
) -> tuple[Tensor, Tensor]:
    for cycle in range(1, recursion["cycles"] + 1):
        with torch.set_grad_enabled(cycle == recursion["cycles"]):
            for _ in range(recursion["inner_updates"]):
                z = net(arm, w, x + y + z, keep)
            y = net(arm, w, y + z, keep)
    return y, z


def embedded(w: dict[str, Tensor], tokens: Tensor, puzzles: Tensor) -> Tensor:
    front = torch.zeros(len(tokens), 4, 32, dtype=w["embed_tokens.weight"].dtype)
    front = torch.cat((w["embed_puzzles.weight"][puzzles][:, None], front[:, 1:]), 1)
    return math.sqrt(32) * torch.cat((front, w["embed_tokens.weight"][tokens]), 1)


def published_loss(logits: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """Per sequence the mean of -log stablemax in fp64, plus half the cross-entropy of q against an exact match."""
    total = torch.zeros((), dtype=torch.float64)
    for row, said, wanted in zip(logits.double(), q, labels):
        labelled = [i for i in range(len(wanted)) if wanted[i] != -100]
        nats = []
        for i in labelled:
            s = torch.stack([v + 1 if v >= 0 else 1 / (1 - v) for v in row[i]])
            nats.append(-torch.log(s[wanted[i]] / s.sum()))
        right = all(int(row[i].argmax()) == int(wanted[i]) for i in labelled)
        p = torch.sigmoid(said.double())
        total = total + torch.stack(nats).mean() - 0.5 * torch.log(p if right else 1 - p)
    return total / len(labels)


def example(padding: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """tokens, labels, puzzles, document ids, and which of all positions are real."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 13, (3, 21), generator=generator)
    labels = torch.randint(0, 13, (3, 21), generator=generator)
    labels[torch.rand(3, 21, generator=generator) < 0.5] = -100
    keep = torch.ones(25, dtype=torch.bool)
    if not padding:
        return tokens, labels, torch.tensor([0, 4, 2]), None, keep
    labels[:, -padding:] = -100
    keep[-padding:] = False
    ids = torch.zeros_like(tokens)
    ids[:, -padding:] = -1
    return tokens, labels, torch.tensor([0, 4, 2]), ids, keep


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("arm", sorted(ARMS))
@pytest.mark.parametrize(("dtype", "near", "near_gradients", "recursion"), [
    (torch.float32, 1e-5, 1e-4, SHALLOW), (torch.float64, 1e-6, 1e-5, RECURSION),
])  # fmt: skip
def test_two_supervision_steps_are_as_published(
    arm: str, padding: int, dtype: torch.dtype, near: float, near_gradients: float, recursion: dict[str, int]
) -> None:
    model = model_of(arm, dtype, recursion)
    w = {name: t.detach().clone().requires_grad_() for name, t in model.named_parameters()}
    names = list(w)
    w["output"] = w["embed_tokens.weight"] if model.lm_head is None else w["lm_head.weight"]
    tokens, labels, puzzles, ids, keep = example(padding)
    answers = model(tokens, ids, puzzles, all_steps=True)

    trainer = RecursiveTrainer(model, rows=3, length=21)
    positions = torch.arange(21).expand(3, 21)
    x = embedded(w, tokens, puzzles)
    y, z = (s.expand(3, 25, 32) for s in (model.y0, model.z0))
    for step in range(2):
        fresh = torch.full((3,), step == 0)
        extras = {"row": torch.arange(3), "fresh": fresh, "least": torch.full((3,), 2), "puzzle": puzzles}
        model.zero_grad()
        loss, _ = DeepSupervision()(trainer, Batch(tokens, labels, positions, ids, extras))
        loss.backward()
        trainer.after_step()

        y, z = supervision_step(arm, w, x, y.detach(), z.detach(), keep, recursion)
        logits = y[:, 4:] @ w["output"].T
        q = y[:, 0] @ w["halt_head.weight"][0] + w["halt_head.bias"][0]
        with torch.no_grad():
            real = keep[4:]
            assert (answers.logits[step] - logits)[:, real].abs().max() <= near * logits.abs().max()
            assert (answers.q[step] - q).abs().max() <= near * q.abs().max().clamp_min(1)
        expected = published_loss(logits, q, labels)
        assert loss.item() == pytest.approx(expected.item(), rel=near)
        for name, grad in zip(names, torch.autograd.grad(expected, [w[n] for n in names], retain_graph=True)):
            ours = model.get_parameter(name).grad
            assert ours is not None, name
            assert (ours - grad).abs().max() <= near_gradients * grad.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_bf16_weights_stay_near_fp32(arm: str) -> None:
    """Within 0.15 of the logits' size after one supervision step of four calls of the core."""
    tokens, _, puzzles, ids, keep = example(6)
    model = model_of(arm, torch.float32, SHALLOW)
    exact = model(tokens, ids, puzzles, steps=1).logits
    rough = model.to(torch.bfloat16)(tokens, ids, puzzles, steps=1).logits
    assert rough.dtype == torch.bfloat16
    difference = (rough.float() - exact)[:, keep[4:]]
    assert difference.square().mean().sqrt() <= 0.15 * exact.square().mean().sqrt()
