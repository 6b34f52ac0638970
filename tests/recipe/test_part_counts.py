"""What sections count of their layers, held against what torch does: operations of a rule on its state, matrix products of
a core, tensors that autograd keeps, and small models that are built."""

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
from mixer_helpers import kept_by_a_layer

from ikirere.model.build import build_model
from ikirere.model.config import ModelConfig
from ikirere.model.layers import decay, delta
from ikirere.recipe.load import load_recipe
from ikirere.recipe.mixers import MIXERS, Mlp, family_of
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.flops import pass_per_token
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


def test_the_network_over_positions_is_eight_thirds_wide_in_steps_of_256() -> None:
    assert [Mlp().width(n) for n in (96, 97, 480, 481, 1040)] == [256, 512, 1280, 1536, 2816]


def test_a_recursive_model_keeps_an_average_and_what_it_carries() -> None:
    """Weights once more; answer and latent of two rows of ten tokens and sixteen positions before them."""
    m = model("full", family="recursive")
    assert family_of(m).training_elements(m, 1000, rows=2, length=10) == 1000 + 2 * 2 * (10 + 16) * 32
    assert family_of(model("full")).training_elements(m, 1000, rows=2, length=10) == 0


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
