"""The chunked loss is the plain one: values and gradients, whatever the chunks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from train_helpers import Numbers, one_thread, small_model

from ikirere.tokens.batch import Batch
from ikirere.train import objective
from ikirere.train.objective import (
    CrossEntropy,
    chunk_rows,
    cross_entropy,
    sequence_logprobs,
    token_logprobs,
    weight_of,
)


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


EXAMPLES = settings(max_examples=40, deadline=None)


def drawn(seed: int, n: int, width: int, vocab: int, kept: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).requires_grad_()
    labels = torch.randint(0, vocab, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) >= kept] = -100
    return hidden, weight, labels


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float) -> Tensor:
    logits = hidden @ weight.T
    lse = logits[labels != -100].logsumexp(-1)
    return F.cross_entropy(logits, labels) + z_loss * lse.square().mean()


def close(a: Tensor | None, b: Tensor | None, bound: float = 1e-6) -> None:
    assert a is not None and b is not None
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= bound * scale


@EXAMPLES
@given(
    st.integers(0, 9999),
    st.integers(1, 60),
    st.integers(2, 40),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.integers(1, 17),
)
def test_value_and_gradients_are_those_of_torch(
    seed: int, n: int, vocab: int, kept: float, z_loss: float, rows: int
) -> None:
    hidden, weight, labels = drawn(seed, n, 8, vocab, kept)
    labels[0] = 0
    expected = plain(hidden, weight, labels, z_loss)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "chunk_rows", lambda vocabulary, device: rows)
        loss, nll, z = cross_entropy(hidden, weight, labels, z_loss)
        found = torch.autograd.grad(2 * loss, (hidden, weight))
        with torch.no_grad():
            assert torch.equal(cross_entropy(hidden, weight, labels, z_loss)[0], loss)
    close(loss, expected)
    close(nll + z, loss)
    for a, b in zip(found, wanted, strict=True):
        close(a / 2, b)


def test_extreme_logits_stay_finite() -> None:
    """The label's probability underflows in fp32; its logarithm must not."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[500.0, -500.0], [-500.0, 500.0], [0.0, 0.0]], requires_grad=True)
    loss, _, _ = cross_entropy(hidden, weight, torch.tensor([1, 2]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(750.0)
    assert hidden.grad is not None and bool(hidden.grad.isfinite().all())


def test_without_labels_the_loss_is_zero_and_so_are_gradients() -> None:
    hidden, weight, labels = drawn(0, 5, 4, 7, 0.0)
    loss, _, _ = cross_entropy(hidden, weight, labels, 0.1)
    loss.backward()
    assert float(loss.detach()) == 0 and hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any() and not weight.grad.any()


@EXAMPLES
@given(st.integers(0, 9999), st.integers(1, 6), st.integers(1, 9), st.integers(1, 13))
def test_sequence_logprobs_are_sums_of_log_softmax(seed: int, rows: int, length: int, chunk: int) -> None:
    hidden, weight, labels = drawn(seed, rows * length, 8, 23, 0.6)
    h, y = hidden.view(rows, length, 8), labels.view(rows, length)
    scale = torch.randn(rows, generator=torch.Generator().manual_seed(seed + 1))
    logits = F.log_softmax(h @ weight.T, -1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(y == -100, 0.0, logits).sum(-1)
    wanted = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "chunk_rows", lambda vocabulary, device: chunk)
        found = token_logprobs(h, weight, y).sum(-1)
        gradients = torch.autograd.grad((found * scale).sum(), (hidden, weight))
    close(found, expected, 1e-5)
    for a, b in zip(gradients, wanted, strict=True):
        close(a, b, 1e-5)


def test_objectives_on_a_decoder() -> None:
    model, batch = small_model(), Numbers().next()
    loss, scalars = CrossEntropy()(model, batch)
    logits = model(batch.tokens, batch.positions, batch.document_ids)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    close(loss, expected)
    assert scalars == {}
    total = -sequence_logprobs(model, batch).sum() / batch.tokens_used
    close(total, expected)
    assert set(CrossEntropy(1e-4)(model, batch)[1]) == {"nll", "z_loss"}


def test_under_autocast_the_products_are_narrow_and_the_rest_is_not() -> None:
    hidden, weight, labels = drawn(0, 64, 16, 40, 1.0)
    wide, _, _ = cross_entropy(hidden, weight, labels, 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, _ = cross_entropy(hidden, weight, labels, 1e-4)
        summed = token_logprobs(hidden, weight, labels).sum()
    gradients = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    wanted = torch.autograd.grad(wide, (hidden, weight))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(wide.detach()), rel=0.02)
    assert -float(summed.detach()) / 64 == pytest.approx(float(wide.detach()), rel=0.02)
    for a, b in zip(gradients, wanted, strict=True):
        assert a.dtype == torch.float32
        close(a, b, 0.02)


def test_what_a_loss_is_a_mean_over() -> None:
    batch = Numbers().next()

    class Pairs:
        rows = 2

        def weight(self, batch: Batch) -> int:
            return len(batch.tokens) // 2

        def __call__(self, model: object, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.zeros(()), {}

    assert weight_of(CrossEntropy(), batch) == batch.tokens_used < batch.labels.numel()
    assert weight_of(Pairs(), batch) == len(batch.tokens) // 2


@pytest.mark.parametrize(
    ("device", "vocabulary", "rows"),
    [
        ("cpu", 4096, 1024),
        ("cpu", 16_384, 256),
        ("cpu", 150_000, 256),
        ("cuda", 32_768, 2048),
        ("xpu", 65_536, 1024),
    ],
)
def test_a_chunk_of_logits_is_16_mb_on_the_cpu_and_256_mb_elsewhere(
    device: str, vocabulary: int, rows: int
) -> None:
    """But never fewer than 256 rows, which a matrix product needs."""
    assert chunk_rows(vocabulary, torch.device(device)) == rows


def test_losses_of_the_parts_of_a_model_are_added_and_reported() -> None:
    decoder, batch = small_model(), Numbers().next()
    plain_loss, _ = CrossEntropy(1e-3)(decoder, batch)
    balance = torch.tensor(0.25, requires_grad=True)
    model = SimpleNamespace(
        hidden=decoder.hidden,
        output_weight=decoder.output_weight,
        auxiliary={"balance": balance, "router_z": torch.tensor(0.5)},
    )
    loss, scalars = CrossEntropy(1e-3)(model, batch)
    assert float(loss.detach()) == pytest.approx(float(plain_loss.detach()) + 0.75)
    assert set(scalars) == {"nll", "z_loss", "balance", "router_z"}
    assert float(scalars["nll"] + scalars["z_loss"]) == pytest.approx(float(plain_loss.detach()))
    assert not any(value.requires_grad for value in scalars.values())
    loss.backward()
    assert balance.grad == 1.0


def test_what_is_reported_is_detached() -> None:
    hidden, weight, labels = drawn(1, 6, 4, 9, 1.0)
    for kept in (labels, torch.full_like(labels, -100)):
        loss, nll, z = cross_entropy(hidden, weight, kept, 0.1)
        assert loss.requires_grad and not nll.requires_grad and not z.requires_grad


def test_logprobs_without_labels_are_zero_and_have_gradients_of_zero() -> None:
    hidden, weight, labels = drawn(0, 6, 4, 7, 0.0)
    values = token_logprobs(hidden.view(2, 3, 4), weight, labels.view(2, 3))
    values.sum().backward()
    assert values.shape == (2, 3) and values.dtype == torch.float32 and not values.any()
    assert hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any() and not weight.grad.any()


def test_gradients_in_bfloat16_add_up_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and states in bf16: each chunk's products are bf16, the sums stay close to those in fp32."""
    hidden, weight, labels = drawn(2, 64, 16, 40, 0.8)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    high = [x.detach().float().requires_grad_() for x in low]
    monkeypatch.setattr(objective, "chunk_rows", lambda vocabulary, device: 10)
    for loss in (
        lambda h, w: cross_entropy(h, w, labels, 1e-2)[0],
        lambda h, w: -token_logprobs(h, w, labels).sum() / (labels != -100).sum(),
    ):
        ours = torch.autograd.grad(loss(*low), low)
        exact = torch.autograd.grad(loss(*high), high)
        for a, b in zip(ours, exact, strict=True):
            assert a.dtype == torch.bfloat16
            close(a.float(), b, 0.03)
