"""The n-gram model and the classifier that are trained on the spot from documents which a recipe takes as
good.

Two of each are made. A document belongs to one of two folds, drawn from its id, and is scored by the models
of the other fold: no document is judged by a model that saw it, though the same documents serve for training
and are judged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ikirere.common.files import write_json
from ikirere.corpus.steps.classifier import CHARACTERS, Classifier, features
from ikirere.corpus.steps.ngram_model import NgramModel, tokens
from ikirere.corpus.steps.sample import FOLDS, Catalogue, draw, fold
from ikirere.errors import UserError
from ikirere.recipe.hygiene import Quality

CUT = 100_000  # characters of a text's beginning that the n-gram model reads, in training and in scoring
NGRAM_BYTES = 16_000_000  # of text per fold for the n-gram model
CLASSIFIER_DOCUMENTS = 3_000  # per fold and side
QUANTILE_DOCUMENTS = 10_000  # per domain, for the threshold of perplexity: its standard error at 0.9 is 0.003
FEWEST = 10  # documents per fold and side; the classifier learns nothing from less

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingSummary:
    """What training showed. accuracy and auc: of the classifier on documents that it did not see, both sides
    weighing the same; None where there is no classifier. thresholds: of perplexity, by domain, empty where
    nothing is dropped by it."""

    seed_documents: int
    ngram_bytes: list[int]
    words: list[int]
    trigrams: list[int]
    good: int
    unjudged: int
    accuracy: float | None
    auc: float | None
    thresholds: dict[str, float]


class SeedModels:
    """The models of a folder, opened when a score is first asked for. Picklable: what was opened is not
    pickled."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "seed": self.seed}

    @functools.cached_property
    def ngrams(self) -> list[NgramModel]:
        return [NgramModel.load(self.folder / f"ngram-{k}.npz") for k in range(FOLDS)]

    @functools.cached_property
    def classifiers(self) -> list[Classifier]:
        files = [self.folder / f"classifier-{k}.npz" for k in range(FOLDS)]
        return [Classifier.load(file) for file in files if file.is_file()]

    def perplexity(self, identity: str, text: str) -> float | None:
        """Perplexity under the n-gram model that did not see the document; None for a text of fewer than three words."""
        return self.ngrams[1 - fold(draw(self.seed, identity))].perplexity(text[:CUT])

    def probability(self, identity: str, text: str) -> float | None:
        """Probability of being good text, by the classifier that did not see the document; None where none was
        trained."""
        if not self.classifiers:
            return None
        classifier = self.classifiers[1 - fold(draw(self.seed, identity))]
        return float(classifier.probabilities(features([text]))[0])


def train(
    parts: Sequence[Path], settings: Quality, looked_at: Callable[[str], bool], folder: Path, seed: int
) -> tuple[SeedModels, TrainingSummary]:
    """Train both models of both folds and write them, with `models.json`, into the folder.

    looked_at: whether documents of a domain are judged. Good are documents of `settings.seed_domains`,
    unjudged those of the other domains that are looked at; where these are too few and `min_classifier` drops
    nothing, there is no classifier. Raises UserError where a side has too few documents.
    """
    catalogue = Catalogue.read(parts, seed)
    is_seed = np.array([name in settings.seed_domains for name in catalogue.domains], np.bool_)[
        catalogue.domain
    ]
    is_judged = np.array([looked_at(name) for name in catalogue.domains], np.bool_)[catalogue.domain]
    folds = [catalogue.drawn % FOLDS == k for k in range(FOLDS)]
    sides = {"of seed_domains": is_seed, "of other domains that are looked at": is_judged & ~is_seed}
    with_classifier = True
    for side, members in sides.items():
        fewest = min(int((members & of_fold).sum()) for of_fold in folds)
        if fewest < FEWEST and members is not is_seed and settings.min_classifier == 0:
            with_classifier = False
        elif fewest < FEWEST:
            raise UserError(
                f"data.quality.seed_domains: {int(members.sum())} documents {side} are too few to train on "
                f"(at least {FEWEST} in each half, {fewest} found; domains here: "
                f"{', '.join(sorted(catalogue.domains))}); name other domains, or leave seed_domains empty"
            )

    folder.mkdir(parents=True, exist_ok=True)
    models = SeedModels(folder, seed)
    sizes = _train_ngrams(catalogue, parts, is_seed, folds, folder)
    good = unjudged = np.zeros(0)
    for k in range(FOLDS):
        (folder / f"classifier-{k}.npz").unlink(missing_ok=True)  # of an earlier recipe
    if with_classifier:
        good, unjudged = _train_classifiers(catalogue, parts, sides, folds, folder, seed)
    thresholds: dict[str, float] = {}
    if settings.max_perplexity_quantile < 1:
        thresholds = _thresholds(catalogue, parts, is_judged, models, settings.max_perplexity_quantile)
    accuracy = auc = None
    if with_classifier:
        from sklearn.metrics import balanced_accuracy_score, roc_auc_score

        scores = np.concatenate((good, unjudged))
        labels = np.repeat([True, False], [len(good), len(unjudged)])
        accuracy = round(float(balanced_accuracy_score(labels, scores >= 0.5)), 4)
        auc = round(float(roc_auc_score(labels, scores)), 4)
    summary = TrainingSummary(
        seed_documents=int(is_seed.sum()),
        ngram_bytes=sizes,
        words=[len(model.words) for model in models.ngrams],
        trigrams=[len(model.trigrams) for model in models.ngrams],
        good=len(good),
        unjudged=len(unjudged),
        accuracy=accuracy,
        auc=auc,
        thresholds=thresholds,
    )
    write_json(folder / "models.json", asdict(summary))
    return models, summary


def _train_ngrams(
    catalogue: Catalogue, parts: Sequence[Path], is_seed: Mask, folds: Sequence[Mask], folder: Path
) -> list[int]:
    """Bytes of text that each fold's model was trained on."""
    sizes = []
    for k, of_fold in enumerate(folds):
        chosen = catalogue.lowest(is_seed & of_fold, n_bytes=NGRAM_BYTES, cut=CUT)
        cut = [text[:CUT] for _, text in catalogue.texts(parts, chosen)]
        sizes.append(sum(len(text.encode()) for text in cut))
        try:
            NgramModel.train(map(tokens, cut)).save(folder / f"ngram-{k}.npz")
        except ValueError as error:
            raise UserError(
                f"data.quality.seed_domains: nothing to train on ({error}); name other domains"
            ) from None
    return sizes


def _train_classifiers(
    catalogue: Catalogue,
    parts: Sequence[Path],
    sides: dict[str, Mask],
    folds: Sequence[Mask],
    folder: Path,
    seed: int,
) -> tuple[Floats, Floats]:
    """Probabilities of the good and of the unjudged documents sampled, each by the classifier that did not
    see it."""
    found: list[list[Any]] = []  # by fold and side: the features of its texts
    for of_fold in folds:
        found.append([])
        for members in sides.values():
            chosen = catalogue.lowest(members & of_fold, most=CLASSIFIER_DOCUMENTS)
            # In the order drawn, not the parts': it must not matter how documents are cut into parts.
            ordered = sorted(
                (int(catalogue.drawn[position]), position, text[:CHARACTERS])
                for position, text in catalogue.texts(parts, chosen)
            )
            found[-1].append(features([text for _, _, text in ordered]))
    scores: list[list[Floats]] = [[], []]  # by side
    for k, (good, unjudged) in enumerate(found):
        classifier = Classifier.train(good, unjudged, seed)
        classifier.save(folder / f"classifier-{k}.npz")
        for side, others in zip(scores, found[1 - k]):
            side.append(classifier.probabilities(others))
    return np.concatenate(scores[0]), np.concatenate(scores[1])


def _thresholds(
    catalogue: Catalogue, parts: Sequence[Path], is_judged: Mask, models: SeedModels, quantile: float
) -> dict[str, float]:
    """For each domain that is looked at, the perplexity that this share of its documents does not exceed."""
    thresholds = {}
    for number, domain in enumerate(catalogue.domains):
        chosen = catalogue.lowest(is_judged & (catalogue.domain == number), most=QUANTILE_DOCUMENTS)
        scores = []
        for position, text in catalogue.texts(parts, chosen):
            score = models.ngrams[1 - fold(int(catalogue.drawn[position]))].perplexity(text[:CUT])
            if score is not None:
                scores.append(score)
        if scores:
            thresholds[domain] = float(np.quantile(np.asarray(scores), quantile, method="inverted_cdf"))
    return dict(sorted(thresholds.items()))
