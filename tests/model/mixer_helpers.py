"""What tests of mixers share: models far from their start, tokens, and what autograd keeps of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.schema import Model


def scattered(config: ModelConfig, by: float = 0.1) -> Decoder:
    """A decoder whose weights are far from their start, each kind within its own range."""
    model, r = Decoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=r) * by)
    return model


def tokens(seed: int, batch: int, length: int) -> Tensor:
    """[batch, length], from 0 to 49."""
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def kept_by_a_layer(model: Model, batch: int, length: int, packed: bool) -> int:
    """Bytes that autograd keeps of one more layer, weights apart."""

    def saved(depth: int) -> int:
        decoder = Decoder(ModelConfig.from_recipe(model.model_copy(update={"num_hidden_layers": depth})))
        weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        documents = torch.zeros(batch, length, dtype=torch.long) if packed else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decoder.hidden(torch.zeros(batch, length, dtype=torch.long), document_ids=documents).sum()
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    return saved(3) - saved(2)


def documents_stay_apart(model: Decoder, lengths: list[int]) -> None:
    """Packed rows equal their documents alone, gradients too."""
    t = tokens(2, 2, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    found = []
    for logits in (
        model(t, None, documents),
        torch.cat([model(piece) for piece in t.split(lengths, 1)], 1),
    ):
        model.zero_grad()
        (logits.square().mean() + logits[:, ::3].sum() / 100).backward()
        found.append((logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (ours, of_ours), (apart, of_apart) = found
    assert (ours - apart).abs().max() <= 1e-5
    for key, grad in of_apart.items():
        assert (of_ours[key] - grad).abs().max() <= 1e-4 * grad.abs().max(), key


@torch.no_grad()
def decoding_continues(model: Decoder, length: int) -> None:
    """Prefill, one token and the rest equal the whole pass, wherever they are cut."""
    t = tokens(4, 2, length)
    whole = model(t)
    for cut in range(1, length):
        cache, rows = KVCache(model.config, 3, length), torch.tensor([2, 0])
        pieces = (t[:, :cut], t[:, cut : cut + 1], t[:, cut + 1 :])
        parts = [model(p, cache=cache, rows=rows) for p in pieces if p.numel()]
        assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-5


@torch.no_grad()
def rows_may_differ(model: Decoder) -> tuple[KVCache, Tensor, Tensor]:
    """Rows of 20, 1 and 7 tokens, then two more each, equal the whole pass. Returns the cache of four rows, of which row 2
    is unused and 3, 0 and 1 hold those, the tokens [3, 30] and the whole pass's logits."""
    t = tokens(5, 3, 30)
    whole, cache = model(t), KVCache(model.config, 4, 40)
    rows, counts = torch.tensor([3, 0, 1]), torch.tensor([20, 1, 7])
    first = model(t[:, :20], cache=cache, rows=rows, counts=counts)
    for i, n in enumerate(counts.tolist()):
        assert (first[i, :n] - whole[i, :n]).abs().max() <= 1e-5
    at = counts.unsqueeze(1) + torch.arange(2)
    second = model(t.gather(1, at), cache=cache, rows=rows)
    assert (second - whole[torch.arange(3).unsqueeze(1), at]).abs().max() <= 1e-5
    return cache, t, whole
