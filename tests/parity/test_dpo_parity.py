"""DPO and IPO against the published equations, written out here without the package, gradients included.

DPO: Rafailov et al. 2023, equation 7, and the gradient that follows it in section 4:
-beta * sigmoid(r_rejected - r_chosen) * (grad log pi(chosen) - grad log pi(rejected)).
IPO: Azar et al. 2023, equation 17: (h - 1/(2 tau))^2; with lengths, each log-ratio is a mean over tokens, as TRL
computes it. Where TRL is installed its own trainer is asked too.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.posttrain.dpo import EncodedPair, Preference, collate_pairs, pair_logprobs, preference_loss
from ikirere.tokens.batch import IGNORE, Batch

CASES = 24


def published_dpo(c: float, r: float, rc: float, rr: float, beta: float) -> tuple[float, float, float]:
    """Loss and its derivatives by log pi(chosen) and log pi(rejected), of one pair, in plain arithmetic."""
    reward_chosen, reward_rejected = beta * (c - rc), beta * (r - rr)
    loss = -math.log(1 / (1 + math.exp(-(reward_chosen - reward_rejected))))
    weight = 1 / (1 + math.exp(-(reward_rejected - reward_chosen)))
    return loss, -beta * weight, beta * weight


def published_ipo(
    c: float, r: float, rc: float, rr: float, beta: float, nc: int, nr: int
) -> tuple[float, float, float]:
    h = (c - rc) / nc - (r - rr) / nr
    return (h - 1 / (2 * beta)) ** 2, 2 * (h - 1 / (2 * beta)) / nc, -2 * (h - 1 / (2 * beta)) / nr


def draws(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d = (-40 * torch.rand(CASES, dtype=torch.float64, generator=generator) for _ in range(4))
    return a.requires_grad_(), b.requires_grad_(), c, d


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 2.0])
def test_sigmoid_equals_equation_7(beta: float) -> None:
    c, r, rc, rr = draws(1)
    losses, good, bad = preference_loss(c, r, rc, rr, beta, "sigmoid")
    losses.sum().backward()
    assert c.grad is not None and r.grad is not None
    for i in range(CASES):
        loss, dc, dr = published_dpo(*(float(x[i].detach()) for x in (c, r, rc, rr)), beta)
        assert float(losses[i].detach()) == pytest.approx(loss, rel=1e-9, abs=1e-12)
        assert float(c.grad[i]) == pytest.approx(dc, rel=1e-9, abs=1e-12)
        assert float(r.grad[i]) == pytest.approx(dr, rel=1e-9, abs=1e-12)
    assert torch.allclose(good, beta * (c - rc).detach()) and torch.allclose(bad, beta * (r - rr).detach())
    assert not good.requires_grad


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("by_length", [True, False])
def test_ipo_equals_equation_17(beta: float, by_length: bool) -> None:
    c, r, rc, rr = draws(2)
    nc, nr = torch.randint(1, 30, (2, CASES), generator=torch.Generator().manual_seed(3))
    lengths = (nc, nr) if by_length else ()
    losses, _, _ = preference_loss(c, r, rc, rr, beta, "ipo", *lengths)
    losses.sum().backward()
    assert c.grad is not None and r.grad is not None
    for i in range(CASES):
        n = (int(nc[i]), int(nr[i])) if by_length else (1, 1)
        loss, dc, dr = published_ipo(*(float(x[i].detach()) for x in (c, r, rc, rr)), beta, *n)
        assert float(losses[i].detach()) == pytest.approx(loss, rel=1e-9)
        assert float(c.grad[i]) == pytest.approx(dc, rel=1e-9)
        assert float(r.grad[i]) == pytest.approx(dr, rel=1e-9)


def test_at_the_reference_the_loss_is_log_2() -> None:
    c, r, _, _ = draws(4)
    losses, _, _ = preference_loss(c, r, c.detach(), r.detach(), 0.1, "sigmoid")
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)))
    losses, _, _ = preference_loss(c, r, c.detach(), r.detach(), 0.1, "ipo")
    assert torch.allclose(losses, torch.full_like(losses, 25.0))


def tiny(seed: int) -> Decoder:
    shape = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = Decoder(shape)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def pairs_of(count: int, seed: int) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        return torch.randint(17, 50, (n,), generator=generator)

    pairs = []
    for i in range(count):
        prompt = draw(3 + i % 5)
        chosen, rejected = torch.cat([prompt, draw(2 + i % 4)]), torch.cat([prompt, draw(3 + i % 6)])
        pairs.append(EncodedPair(chosen.int().numpy(), rejected.int().numpy(), len(prompt), str(i)))
    return pairs


def by_hand(model: Decoder, ids: list[int], start: int) -> Tensor:
    """Sum of the log-probabilities of ids[start:], from whole logits, one conversation at a time."""
    logits = model(torch.tensor([ids]))[0].double()
    chosen = torch.log_softmax(logits, -1)[torch.arange(start - 1, len(ids) - 1), torch.tensor(ids[start:])]
    return chosen.sum()


@pytest.mark.parametrize(("loss", "sft_weight"), [("sigmoid", 0.0), ("ipo", 0.0), ("sigmoid", 0.3)])
def test_objective_and_its_gradients_equal_the_equations(loss: str, sft_weight: float) -> None:
    policy, reference, pairs, beta = tiny(1), tiny(2), pairs_of(6, 5), 0.3
    frozen = pair_logprobs(reference, pairs, 0, batch_pairs=4)
    batch = collate_pairs(pairs, max(p.length for p in pairs), 0)
    batch.extras["reference"] = frozen.reshape(-1)
    objective = Preference(beta, loss, sft_weight)  # type: ignore[arg-type]
    total, metrics = objective(policy, batch)
    total.backward()
    ours = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    terms, margins = [], []
    for pair in pairs:
        c, r = (by_hand(policy, ids.tolist(), pair.start) for ids in (pair.chosen, pair.rejected))
        rc, rr = (
            by_hand(reference, ids.tolist(), pair.start).detach() for ids in (pair.chosen, pair.rejected)
        )
        nc, nr = len(pair.chosen) - pair.start, len(pair.rejected) - pair.start
        if loss == "sigmoid":
            term = -torch.log(torch.sigmoid(beta * torch.log(torch.exp(c - rc) / torch.exp(r - rr))))
        else:
            term = ((c - rc) / nc - (r - rr) / nr - 1 / (2 * beta)) ** 2
        terms.append(term - sft_weight * c / nc)
        margins.append(float((beta * ((c - rc) - (r - rr))).detach()))
    expected = torch.stack(terms).mean()
    expected.backward()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, parameter in zip(ours, (p for p in policy.parameters() if p.grad is not None), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]
    assert float(metrics["rewards/margins"]) == pytest.approx(sum(margins) / len(margins), rel=1e-4, abs=1e-6)
    assert float(metrics["rewards/accuracies"]) == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert float(metrics["rewards/margins"]) == pytest.approx(
        float(metrics["rewards/chosen"] - metrics["rewards/rejected"]), abs=1e-6
    )


def test_the_prompt_carries_no_loss() -> None:
    pairs = pairs_of(4, 8)
    batch: Batch = collate_pairs(pairs, 16, 0)
    for i, pair in enumerate(pairs):
        for line, ids in ((2 * i, pair.chosen), (2 * i + 1, pair.rejected)):
            used = batch.labels[line] != IGNORE
            assert batch.labels[line][used].tolist() == ids[pair.start :].tolist()
            assert int(used.nonzero()[0]) == pair.start - 1


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_trl_agrees(loss: str, tmp_path: object) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed; the equations above stand alone")
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    hub = pytest.importorskip("ikirere.model.hub")
    policy, reference, beta = tiny(1), tiny(2), 0.2
    folders = []
    for name, model in (("policy", policy), ("reference", reference)):
        folder = tmp_path / name  # type: ignore[operator]
        hub.save_pretrained(model, folder, None)
        folders.append(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    pairs = pairs_of(4, 9)
    rows = [
        {"prompt_ids": p.chosen[: p.start].tolist(), "chosen_ids": p.chosen[p.start :].tolist(), "rejected_ids": p.rejected[p.start :].tolist()}
        for p in pairs
    ]  # fmt: skip
    vocabulary = {f"t{i}": i for i in range(50)}
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t1"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="t0", eos_token="t2")
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=beta,
        loss_type=loss,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
    )
    trainer = trl.DPOTrainer(
        model=folders[0],
        ref_model=folders[1],
        args=arguments,
        processing_class=fast,
        train_dataset=datasets.Dataset.from_list([{"prompt": "t20", "chosen": "t21", "rejected": "t22"}] * 2),
    )
    theirs = trainer.compute_loss(folders[0], trainer.data_collator(rows))
    batch = collate_pairs(pairs, max(p.length for p in pairs), 0)
    batch.extras["reference"] = pair_logprobs(reference, pairs, 0).reshape(-1)
    ours, _ = Preference(beta, loss)(policy, batch)  # type: ignore[arg-type]
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4)
