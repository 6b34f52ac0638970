"""Operations, parameters and kept activations of each mixer and feed-forward, held against counts that share no formula
with them: matrix products that torch counts, entries of a state that a rule touches, positions summed one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from mixer_room import kept_by_a_layer

from ikirere.model.build import build_model
from ikirere.model.config import ModelConfig
from ikirere.model.layers import decay, delta
from ikirere.recipe.load import load_recipe
from ikirere.recipe.mixers import MIXERS, family_of
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.flops import forward_per_token, pass_per_token, training_per_token
from ikirere.recipe.planner.memory import layer_elements
from ikirere.recipe.schema import Model

LENGTH = 24


def model(pattern: str, **more: Any) -> Model:
    values: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 6,
        "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": LENGTH, "layer_pattern": pattern,
    }  # fmt: skip
    return Model.model_validate(values | more)


class StateOperations(TorchDispatchMode):
    """Counts multiplications and additions of operations whose operands are as large as the state."""

    def __init__(self, state: int) -> None:
        super().__init__()
        self.state, self.found = state, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        sizes = [t.numel() for t in (*args, out) if isinstance(t, Tensor)]
        if sizes and max(sizes) >= self.state:
            if name in ("mul", "add", "sub"):
                self.found += out.numel()
            elif name in ("bmm", "mm"):
                self.found += 2 * out.numel() * args[0].shape[-1]
        return out


def of_the_rule(rule: Callable[..., Any], heads: int, key: int, value: int, channel_decays: bool) -> int:
    """Operations per token of a rule as it is written, on a state [heads, key, value]."""
    tokens = 3
    q, k = torch.rand(2, 1, tokens, heads, key)
    v = torch.rand(1, tokens, heads, value)
    decays = (torch.rand(1, tokens, heads, key), torch.rand(1, tokens, heads))
    with StateOperations(heads * key * value) as counted:
        state = torch.zeros(1, heads, key, value)
        rule(q, k, v, *(decays if channel_decays else decays[1:]), state)
    assert counted.found % tokens == 0
    return counted.found // tokens


def mixing(of: Model, name: str, length: int = LENGTH) -> float:
    """Operations per token besides two per weight of a matrix."""
    return of.mixer(name).forward_flops(of, length) - 2 * of.mixer(name).parameters(of)[0]


def test_kda_touches_each_entry_of_its_state_seven_times() -> None:
    m = model("kda", mixers={"kda": {"head_dim": 8, "num_heads": 3}})
    found = of_the_rule(delta.recurrent, 3, 8, 8, channel_decays=True)
    assert mixing(m, "kda") == found == 7 * 3 * 8 * 8


def test_states_of_one_decay_per_head_are_touched_five_times() -> None:
    m = model("mamba2 retention", mixers={
        "mamba2": {"head_dim": 16, "state_size": 5}, "retention": {"head_dim": 4, "value_head_dim": 7},
    })  # fmt: skip
    assert mixing(m, "mamba2") == of_the_rule(decay.recurrent, 4, 5, 16, channel_decays=False) == 5 * 64 * 5
    assert mixing(m, "retention") == of_the_rule(decay.recurrent, 4, 4, 7, channel_decays=False) == 5 * 4 * 28


def test_attention_reads_what_each_token_sees() -> None:
    m = model("full window mla", mixers={
        "window": {"window": 5, "sinks": 2},
        "mla": {"kv_lora_rank": 9, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5},
    })  # fmt: skip
    seen = [list(range(i + 1)) for i in range(LENGTH)]
    near = [[j for j in all_before if i - 5 < j] for i, all_before in enumerate(seen)]
    pairs = sum(map(len, seen)) / LENGTH
    assert mixing(m, "full") == pytest.approx(pairs * 4 * (2 * 6 + 2 * 6))  # scores and values, 4 heads of 6
    assert mixing(m, "mla") == pytest.approx(pairs * 4 * (2 * (4 + 2) + 2 * 5))
    # Sinks are counted for every token, also for the first ones, whose window holds them.
    assert mixing(m, "window") == pytest.approx((sum(map(len, near)) / LENGTH + 2) * 4 * (2 * 6 + 2 * 6))


def test_hybrid_reads_window_summaries_and_chosen_blocks() -> None:
    m = model("hybrid", mixers={"hybrid": {"window": 7, "block_size": 4, "top_k": 2}})
    total = 0
    for i in range(LENGTH):
        blocks = max(0, i - 7 + 1) // 4  # whole blocks before the window
        window = i + 1 - 4 * blocks
        total += (window + blocks + 4 * min(2, blocks)) * 4 * (2 * 6 + 2 * 6) + blocks * 2 * (2 * 6)
    assert mixing(m, "hybrid") == pytest.approx(total / LENGTH)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("pattern", "kept"), [("full", {}), ("mlp", {}), ("mlp", {"mlp": {"intermediate_size": 10}})]
)
def test_a_core_makes_the_products_that_torch_counts(
    pattern: str, kept: dict[str, Any], bidirectional: bool
) -> None:
    """One pass through the layers and the head, over all positions of the row."""
    recursion = {
        "puzzle_tokens": 4, "inner_updates": 1, "cycles": 1, "supervision_steps": 1, "bidirectional": bidirectional,
    }  # fmt: skip
    m = model(pattern, family="recursive", mixers=kept | {"recursive": recursion})
    network, positions = build_model(ModelConfig.from_recipe(m)), LENGTH + 4
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        network(torch.zeros(1, LENGTH, dtype=torch.long))
    head, halting = 2 * LENGTH * 50 * 32, 2 * 32
    in_layers = (
        counter.get_total_flops() - head - halting
    ) / 2  # two passes: of the latent and of the answer
    assert pass_per_token(m, positions) - 2 * 50 * 32 == pytest.approx(in_layers / positions)


def test_kda_runs_both_ways_in_a_core() -> None:
    def passed(pattern: str, both: bool) -> float:
        m = model(pattern, family="recursive", mixers={"recursive": {"bidirectional": both}})
        return pass_per_token(m, LENGTH)

    m = model("kda")
    weights, _ = m.mixer("kda").parameters(m)
    assert passed("kda", True) - passed("kda", False) == 3 * (2 * weights + 7 * 4 * 128 * 128)
    assert passed("full", True) == passed("full", False)


def test_passes_of_a_recursive_model() -> None:
    """The trace of arXiv 2510.04871, figure 3, written out as loops."""
    recursion = {"inner_updates": 2, "cycles": 3, "supervision_steps": 5}
    m = model("full", family="recursive", mixers={"recursive": recursion})
    forward = backward = 0
    for cycle in range(3):
        for _ in range(2 + 1):
            forward += 1
            backward += cycle == 2
    assert forward_per_token(m, LENGTH) == 5 * forward * pass_per_token(m, LENGTH)
    assert training_per_token(m, LENGTH) == (forward + 2 * backward) * pass_per_token(m, LENGTH)
    assert family_of(m).training_elements(m, 1000, rows=2, length=10) == 1000 + 2 * 2 * (10 + 16) * 32


def test_a_token_meets_the_router_and_its_experts() -> None:
    m = model("full", ffn_pattern="moe", ffns={"moe": {"num_experts": 5, "top_k": 3, "expert_size": 7}})
    expert, router = 3 * 32 * 7, 5 * 32
    assert m.ffn("moe").parameters(m) == (5 * expert + router, 0)
    assert m.ffn("moe").forward_flops(m, LENGTH) == 2 * (3 * expert + router)
    idle = 3 * 2 * expert  # layers, experts that a token does not meet
    assert count(m).matmul == count(m).hidden_2d + 50 * 32 - idle


def test_kept_activations_of_experts_are_those_of_the_chosen_ones() -> None:
    small = load_recipe(Path(__file__).with_name("small.yaml")).model
    m = small.model_copy(update={
        "hidden_size": 64, "head_dim": 16, "ffn_pattern": "moe",
        "ffns": {"moe": {"num_experts": 4, "top_k": 2, "expert_size": 96}},
    })  # fmt: skip
    counted = sum(layer_elements(m, "full", "moe", 48, packed=False)) * 4 * 2 * 48
    assert kept_by_a_layer(m, 2, 48, packed=False) == pytest.approx(counted, rel=0.002)


@pytest.mark.parametrize("name", MIXERS)
def test_a_rehearsal_makes_every_mixer_small_and_keeps_it_buildable(name: str) -> None:
    from ikirere.recipe.rehearse import shrink

    wide = {
        "full": {"rope_scaling": "yarn", "original_max_position_embeddings": 512},
        "window": {"window": 512, "rope_scaling": "yarn", "original_max_position_embeddings": 512},
        "hybrid": {"window": 256, "block_size": 64, "original_max_position_embeddings": 512},
        "mla": {"kv_lora_rank": 512, "q_lora_rank": 768, "qk_nope_head_dim": 128, "v_head_dim": 128},
        "mamba2": {"num_heads": 32, "head_dim": 64, "n_groups": 2},
        "retention": {"num_heads": 8, "head_dim": 128, "value_head_dim": 256},
        "kda": {"num_heads": 8, "head_dim": 128},
        "mlp": {},
    }[name]
    family = MIXERS[name].families[0]
    full = load_recipe(Path(__file__).with_name("small.yaml"), [
        f"model.family={family}", f"model.layer_pattern={name}", "model.hidden_size=1024", "model.head_dim=128",
        "model.num_attention_heads=8", "model.num_hidden_layers=12", "model.qk_norm=false",
        f"model.mixers={ {name: wide} }",
    ])  # fmt: skip
    small = shrink(full).model
    was, now = (m.mixer(name).parameters(m)[0] for m in (full.model, small))
    assert now < was / 20 or name == "mlp"
    with torch.device("meta"):
        network = build_model(ModelConfig.from_recipe(small))
    assert network.num_parameters() == count(small).total
