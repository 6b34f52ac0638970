"""Quality by models: trained on seed domains, and never judging what they saw."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from quality_helpers import context, table

from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.quality import QualityFilter
from ikirere.corpus.steps.seed_models import SeedModels
from ikirere.errors import UserError

GOOD = [
    "theorem",
    "proof",
    "lemma",
    "field",
    "ring",
    "group",
    "map",
    "exact",
    "sequence",
    "kernel",
    "image",
    "module",
    "ideal",
    "prime",
    "local",
]
OTHER = [
    "click",
    "here",
    "buy",
    "now",
    "cheap",
    "offer",
    "sale",
    "login",
    "account",
    "free",
    "price",
    "shop",
    "order",
    "cart",
    "deal",
]


def corpus(n: int = 40) -> list[dict[str, Any]]:
    """Documents of three domains; some of the last read like the first."""
    generator = np.random.default_rng(5)

    def write(side: list[str]) -> str:
        words = generator.choice([*side, *side, *["the", "of", "and", "to", "a", "in", "is", "we"]], 60)
        return " ".join(words) + f" {generator.integers(10**9)}"

    rows = [{"text": write(GOOD), "domain": "papers"} for _ in range(n)]
    rows += [{"text": write(OTHER), "domain": "shops"} for _ in range(n)]
    return rows + [{"text": write(GOOD if k % 4 == 0 else OTHER), "domain": "web"} for k in range(n)]


def parts(folder: Path, rows: list[dict[str, Any]], size: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for start in range(0, len(rows), size):
        paths.append(folder / f"{start:05}.parquet")
        pq.write_table(table(*rows[start : start + size]), paths[-1])
    return paths


SEEDED: dict[str, Any] = {
    "rules": (),
    "seed_domains": ("papers",),
    "max_perplexity_quantile": 0.8,
    "min_classifier": 0.2,
}


def prepared(folder: Path, paths: list[Path], **keys: Any) -> QualityFilter:
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    made = QualityFilter(context(folder, said.append, **(SEEDED | keys)))
    made.prepare(paths)
    assert len(said) == 1 and "that it did not see" in said[0]
    return made


def test_models_drop_what_is_unlike_the_seed(tmp_path: Path) -> None:
    rows = corpus()
    made = prepared(tmp_path / "models", parts(tmp_path / "parts", rows, 50))
    summary = json.loads((tmp_path / "models" / "models.json").read_text())
    assert summary["seed_documents"] == summary["good"] == 40
    assert summary["unjudged"] == 80
    assert summary["auc"] > 0.9  # ten of the unjudged read like the good
    assert set(summary["thresholds"]) == {"papers", "shops", "web"}

    outcome = made(table(*rows))
    scores = {row["id"]: row for row in outcome.logs["scores"].to_pylist()}
    of = {
        name: [row for row in scores.values() if row["domain"] == name] for name in ("papers", "shops", "web")
    }
    assert (
        np.median([r["perplexity"] for r in of["papers"]])
        < np.median([r["perplexity"] for r in of["shops"]]) / 3
    )
    assert min(r["classifier"] for r in of["papers"]) > 0.5 > max(r["classifier"] for r in of["shops"])
    for name, group in of.items():  # the quantile keeps the share that it names
        kept = sum(row["perplexity"] <= summary["thresholds"][name] for row in group)
        assert kept == 32
    for row in outcome.ledger.to_pylist():
        detail = json.loads(row["detail"])
        if row["reason"] == "perplexity":
            assert detail["value"] > detail["threshold"] == round(summary["thresholds"][row["domain"]], 5)
        else:
            assert row["reason"] == "classifier"
            assert detail["value"] < detail["threshold"] == 0.2
    kept_web = [
        text
        for text, d in zip(*(outcome.kept.column(c).to_pylist() for c in ("text", "domain")))
        if d == "web"
    ]
    assert kept_web and all("click" not in text for text in kept_web)


def test_no_document_is_judged_by_a_model_that_saw_it(tmp_path: Path) -> None:
    rows = corpus()
    paths = parts(tmp_path / "parts", rows, 200)
    made = prepared(tmp_path / "models", paths)
    assert made.models is not None
    # A document of the same id with other text changes the models of its own fold, and so not its own score.
    mark = "unheard unspoken unwritten " * 8
    table_with = pq.read_table(paths[0])
    identity = table_with.column("id")[0].as_py()
    texts = table_with.column("text").to_pylist()
    before = (made.models.perplexity(identity, mark), made.models.probability(identity, mark))
    changed = table_with.set_column(1, "text", pa.array([texts[0] + " " + mark, *texts[1:]]))
    pq.write_table(changed, paths[0])
    after = prepared(tmp_path / "other", paths)
    assert after.models is not None
    assert (after.models.perplexity(identity, mark), after.models.probability(identity, mark)) == before
    stranger = next(
        i for i in table_with.column("id").to_pylist() if after.models.perplexity(i, mark) != before[0]
    )
    assert after.models.perplexity(stranger, mark) != made.models.perplexity(stranger, mark)


def test_parts_and_order_do_not_matter_and_the_step_can_be_sent(tmp_path: Path) -> None:
    rows = corpus()
    one = prepared(tmp_path / "one", parts(tmp_path / "whole", rows, 500))
    other = prepared(tmp_path / "two", parts(tmp_path / "cut", rows[::-1], 7))
    for name in ("ngram-0.npz", "ngram-1.npz", "classifier-0.npz", "classifier-1.npz", "models.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").iterdir() if p.suffix == ".part") == []
    every = table(*rows)
    whole = one(every)
    sent = pickle.loads(pickle.dumps(other))
    cut = [sent(every.slice(start, 11)) for start in range(0, len(every), 11)]
    assert whole.kept.equals(pa.concat_tables([part.kept for part in cut]).combine_chunks())
    assert whole.ledger.equals(pa.concat_tables([part.ledger for part in cut]))
    assert whole.logs["scores"].equals(pa.concat_tables([part.logs["scores"] for part in cut]))
    assert len(pickle.dumps(sent)) < 10_000  # models that were opened are not pickled
    assert one.fingerprint() == other.fingerprint()


def test_seed_domains_need_not_be_looked_at(tmp_path: Path) -> None:
    rows = corpus()
    made = prepared(tmp_path / "models", parts(tmp_path / "parts", rows, 500), domains=["web"])
    outcome = made(table(*rows))
    assert set(outcome.logs["scores"].column("domain").to_pylist()) == {"web"}
    assert set(outcome.ledger.column("domain").to_pylist()) == {"web"}
    assert list(made.thresholds) == ["web"]


def test_without_seed_domains_nothing_is_trained(tmp_path: Path) -> None:
    made = make_step("quality", context(tmp_path))
    assert isinstance(made, QualityFilter)
    made.prepare([tmp_path / "is-not-read.parquet"])
    assert made.models is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seed_domains", "message"),
    [
        (("nowhere",), r"0 documents of seed_domains are too few.*domains here: papers, shops, web"),
        (("papers", "shops", "web"), r"0 documents of other domains that are looked at are too few"),
    ],
)
def test_too_little_to_train_on_is_said(tmp_path: Path, seed_domains: tuple[str, ...], message: str) -> None:
    made = QualityFilter(context(tmp_path, **(SEEDED | {"seed_domains": seed_domains})))
    with pytest.raises(UserError, match=r"data\.quality\.seed_domains: " + message):
        made.prepare(parts(tmp_path / "parts", corpus(), 500))
    assert not (tmp_path / "models.json").exists()


def test_without_other_domains_there_is_perplexity_and_no_classifier(tmp_path: Path) -> None:
    folder, said, rows = tmp_path / "models", [], corpus()
    folder.mkdir()
    (folder / "classifier-0.npz").write_bytes(b"of an earlier recipe")
    keys = SEEDED | {"seed_domains": ("papers", "shops", "web"), "min_classifier": 0.0}
    made = QualityFilter(context(folder, said.append, **keys))
    made.prepare(parts(tmp_path / "parts", rows, 500))
    assert said == [
        "quality: trained on 120 documents of papers, shops, web; "
        "no classifier, for there are too few documents of other domains"
    ]
    assert json.loads((folder / "models.json").read_text())["accuracy"] is None
    assert {path.name for path in folder.iterdir()} == {"models.json", "ngram-0.npz", "ngram-1.npz"}
    outcome = made(table(*rows))
    assert set(outcome.ledger.column("reason").to_pylist()) == {"perplexity"}
    assert outcome.logs["scores"].column("classifier").null_count == 120


def test_models_are_opened_once_and_only_when_asked_for(tmp_path: Path) -> None:
    models = SeedModels(tmp_path / "nothing-here", 0)
    with pytest.raises(FileNotFoundError):
        models.perplexity("a", "b c d")
