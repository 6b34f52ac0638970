"""Mixture of experts: each token goes to its top-k feed-forward networks (Shazeer et al. 2017, arXiv 1701.06538;
dropless by grouped products as in MegaBlocks, Gale et al. 2022, arXiv 2211.15841)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.layers.ffn import FeedForward
from ikirere.model.layers.mixer import ForwardContext, Linear, settings_of
from ikirere.recipe.ffns import Moe


class Experts(nn.Module):
    """One matrix per expert, [experts, out_features, in_features], left unset when it is made."""

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [n, in_features] sorted by expert, ends: int32 [experts], where each one's rows end."""
        return F.grouped_mm(x, self.weight.to(x.dtype).transpose(-2, -1), offs=ends)


class MixtureOfExperts(FeedForward):
    """Dropless top-k of `num_experts` SwiGLU networks of `expert_size`.

    normalise_top_k: the chosen probabilities are divided by their sum; at top_k 1 that would leave the router without
    a gradient, so it is refused there. balance: `aux` adds aux_weight * E sum(f_i P_i), f_i tokens of expert i per
    token, P_i its mean probability (Fedus et al. 2021, arXiv 2101.03961, section 2.2; top_k at balance); `bias`
    moves a bias that only selection sees by bias_rate towards even load after each optimiser step (Wang et al. 2024,
    arXiv 2408.15664). router_z_weight: of mean(logsumexp(logits)^2) (Zoph et al. 2022, arXiv 2202.08906).
    capacity_factor: in training an expert takes at most factor * top_k * tokens / E, later tokens pass it by; without
    it nothing is ever dropped.
    """

    auxiliary_name = "router_loss"
    bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        moe = settings_of(Moe, "moe", settings, "ffns")
        self.experts, self.top_k, self.capacity = moe.num_experts, moe.top_k, moe.capacity_factor
        self.normalise, self.balance, self.bias_rate = moe.normalises, moe.balance, moe.bias_rate
        self.aux_weight, self.z_weight = moe.aux_weight, moe.router_z_weight
        size = moe.expert_size or config.intermediate_size
        self.router = Linear(config.hidden_size, self.experts)
        self.gate_proj = Experts(self.experts, config.hidden_size, size)
        self.up_proj = Experts(self.experts, config.hidden_size, size)
        self.down_proj = Experts(self.experts, size, config.hidden_size)
        self.register_buffer("bias", torch.zeros(self.experts))
        self.register_buffer("load", torch.zeros(self.experts), persistent=False)

    def init_weights(self, generator: torch.Generator) -> None:
        self.bias.zero_()
        self.load.zero_()

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        logits = self.router(flat).float()
        probabilities = logits.softmax(-1)
        chosen = (
            (probabilities + self.bias if self.balance == "bias" else probabilities)
            .topk(self.top_k, -1)
            .indices
        )
        weights = probabilities.gather(-1, chosen)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.experts)
        if self.training:
            self._learn_balance(logits, probabilities, chosen, context)
        order = chosen.flatten().argsort(stable=True)
        if self.capacity is not None and self.training:
            weights = self._within_capacity(weights, chosen.flatten(), order, counts)
        token = order // self.top_k
        rows, ends = flat[token], counts.cumsum(0).to(torch.int32)
        y = self.down_proj(F.silu(self.gate_proj(rows, ends)) * self.up_proj(rows, ends), ends)
        y = y * weights.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(flat).index_add(0, token, y.to(flat.dtype)).view_as(x)

    def _learn_balance(
        self, logits: Tensor, probabilities: Tensor, chosen: Tensor, context: ForwardContext
    ) -> None:
        """Losses and loads of the real tokens."""
        real = None
        if context.document_ids is not None:
            real = (context.document_ids >= 0).flatten().to(probabilities.dtype)
        share = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
        if real is not None:
            share = share * real[:, None]
        n = float(len(logits)) if real is None else real.sum().clamp_min(1)
        self.load += share.sum(0).detach()
        mean = (probabilities if real is None else probabilities * real[:, None]).sum(0) / n
        squared = logits.logsumexp(-1).square()
        loss = self.z_weight * (squared if real is None else squared * real).sum() / n
        if self.balance == "aux":
            loss = loss + self.aux_weight * self.experts * (share.sum(0).detach() / n * mean).sum()
        self.auxiliary = loss

    def _within_capacity(self, weights: Tensor, chosen: Tensor, order: Tensor, counts: Tensor) -> Tensor:
        """Weights with zeros for the tokens that come after an expert is full."""
        limit = math.ceil((self.capacity or 0.0) * len(chosen) / self.experts)
        rank = torch.empty_like(order)
        first = counts.cumsum(0) - counts
        rank[order] = torch.arange(len(order), device=order.device) - first[chosen[order]]
        return weights * (rank < limit).view_as(weights)

    @torch.no_grad()
    def after_step(self) -> Tensor:
        """Moves the selection bias, once per optimiser step; gives back each expert's share of the tokens since the
        last call, [experts], over all ranks, 1 / E at balance."""
        load = self.load.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(load)
        if self.balance == "bias" and load.sum() > 0:
            self.bias += self.bias_rate * (load.mean() - load).sign()
        self.load.zero_()
        return load / load.sum().clamp_min(1)
