"""The quality score of RedPajama-v2 (`rps_doc_ml_palm_score`), and sampling by it, for any language.

A fastText classifier separates texts of known quality (for English: Wikipedia, books, OpenWebText) from unfiltered web
text. The score of a document is the probability that it is of the first kind. There is no threshold: documents are
sampled, as in GPT-3 (2005.14165, appendix A), GLaM and PaLM. A document of score s is kept if a draw from a Pareto
distribution is above 1 - s:

    P(keep) = P(X > 1 - s) = (2 - s)^(-alpha)        X as numpy.random.pareto(alpha) draws it; alpha = 9 in GPT-3

Most documents with a high score are kept, and also a few with a low one, which the classifier may not know. GPT-3 chose
alpha so that the kept web text has the score distribution of the reference texts; `fit_alpha` does so for the mean.
"""

import itertools
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.corpus.settings import QualitySettings
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, read_json, sha256_of_file, unit_hash, write_json

MODEL_FILE, FACTS_FILE = "model.bin", "classifier.json"
GPT3_ALPHA = 9.0
_GOOD, _WEB = "__label__good", "__label__web"
_LARGEST_ALPHA = 1e4
# Only at the start of a word, and `</s>` only as a whole word; these are the characters that separate words there.
_COMMAND = re.compile(r"(?<![^ \n\r\t\v\f\0])(?:</s>(?![^ \n\r\t\v\f\0])|__label__)")
# Settings and fastText's names for them.
_OPTIONS = {"epochs": "epoch", "learning_rate": "lr", "word_ngrams": "wordNgrams", "dim": "dim", "buckets": "bucket"}


class QualityClassifier:
    """A trained classifier. `facts` holds what `train_classifier` returned."""

    def __init__(self, directory: str | Path):
        """Loads the files of `train_classifier`; UserError if they are missing or damaged."""
        path = Path(directory) / MODEL_FILE
        self.facts: dict[str, Any] = read_json(Path(directory) / FACTS_FILE)
        if not path.is_file() or sha256_of_file(path) != self.facts["sha256"]:
            raise UserError(f"{path}: missing, or not the model that was trained (sha256); train the classifier again")
        self._model = _fasttext().load_model(str(path))

    def score(self, text: str) -> float:
        """The document's quality score: the probability, from 0 to 1, that the text is of the first kind."""
        return self.scores([text])[0]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The `score` of each text."""
        return _scores(self._model, [one_line(text) for text in texts])


def one_line(text: str) -> str:
    """The text on one line, which is how the classifier reads it; RedPajama-v2 does the same."""
    return " ".join(neutral(text).splitlines()).strip()


def neutral(text: str) -> str:
    """The text without words that command fastText: it stops reading at `</s>` and takes `__label__x` for a label."""
    if "</s>" in text or "__label__" in text:
        return _COMMAND.sub(lambda match: match[0].replace("</s>", "s").replace("__label__", "_label_"), text)
    return text


def keep_probability(score: float, *, alpha: float = GPT3_ALPHA) -> float:
    """(2 - score)^(-alpha): 1 for a score of 1, 2^(-alpha) for a score of 0. ValueError for a score outside 0..1."""
    if not 0 <= score <= 1:
        raise ValueError(f"a quality score lies in 0..1; got {score}")
    return float((2.0 - score) ** -alpha)


def keeps(document_id: str, score: float, *, alpha: float = GPT3_ALPHA, seed: int = 0) -> bool:
    """Whether the document is kept. The draw depends on its id and the seed only, not on the rest of the corpus."""
    return unit_hash(f"{seed}:quality:{document_id}") < keep_probability(score, alpha=alpha)


def fit_alpha(web: Sequence[float], reference: Sequence[float]) -> float:
    """The alpha for which the kept web text has, on average, the score of the reference texts.

    Give the scores of a sample of web documents, and of held-out documents of the first kind. UserError without scores,
    or if no alpha reaches the reference's mean.
    """
    if not len(web) or not len(reference):
        raise UserError("quality: no scores to fit alpha to; give documents of both kinds")
    scores, wanted = np.asarray(web, np.float64), float(np.mean(reference))

    def mean_kept(alpha: float) -> float:
        # Weights relative to that of the best score, because (2 - s)^-alpha underflows for a large alpha.
        weights = np.exp(-alpha * (np.log(2 - scores) - np.log(2 - scores.max())))
        return float(np.sum(weights * scores) / np.sum(weights))

    low, high = 0.0, _LARGEST_ALPHA
    if not mean_kept(low) <= wanted <= mean_kept(high):
        raise UserError(
            f"quality: no alpha gives the web (mean score {mean_kept(low):.3f}, best {scores.max():.3f}) the "
            f"reference's mean score of {wanted:.3f}; set it by hand (GPT-3 used 9)"
        )
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_kept(middle) < wanted else (low, middle)
    return high


def train_classifier(
    positives: Iterable[str],
    negatives: Iterable[str],
    *,
    directory: Path,
    settings: QualitySettings,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains a classifier on texts of known quality and unfiltered web; writes model.bin, classifier.json.

    Training uses one thread, so the same texts give the same bytes. The score assumes that both kinds are as frequent
    as in training; give about as much text of each. A hash of the text selects those that are held out for testing;
    `seed` is that of the hash, of the order of the texts, and of fastText.

    Returns:
        `{"trained_on", "held_out": {"good", "web"} counts, "accuracy", "auc", "mean_score": {"good", "web"}, "options",
            "seed", "sha256"}`. The accuracy (at a score of 0.5), the AUC and the means are those of the held-out texts.

    Raises:
        UserError: one kind has no text to train on or no text to test on, or fastText fails.
    """
    options = {key: getattr(settings, key) for key in _OPTIONS}
    training: list[tuple[float, str]] = []  # (order, labelled line)
    tests: dict[str, list[str]] = {_GOOD: [], _WEB: []}
    counts = {_GOOD: 0, _WEB: 0}
    for label, text in itertools.chain(((_GOOD, text) for text in positives), ((_WEB, text) for text in negatives)):
        line = one_line(text)
        if unit_hash(f"{seed}:held_out:{line}") < settings.held_out:
            tests[label].append(line)
        else:
            counts[label] += 1
            training.append((unit_hash(f"{seed}:order:{line}"), f"{label} {line}"))
    for label, name in ((_GOOD, "positives"), (_WEB, "negatives")):
        if not counts[label] or not tests[label]:
            raise UserError(
                f"quality: {counts[label]} {name} to train on and {len(tests[label])} to test on; give more texts"
            )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".training-", dir=directory) as scratch:
        file = Path(scratch) / "training.txt"
        # fastText reads the file in order, so both kinds must be mixed.
        file.write_text("".join(f"{line}\n" for _, line in sorted(training)), encoding="utf-8")
        try:
            model = _fasttext().train_supervised(
                input=str(file),
                **{_OPTIONS[key]: value for key, value in options.items()},
                thread=1,
                seed=seed % 2**31,  # an int32 there
                verbose=0,
            )
        except RuntimeError as error:  # "Encountered NaN."
            raise UserError(
                f"quality: fastText failed ({error}); lower quality.learning_rate, and check that the installed "
                f"package is fasttext-community (other packages of this name train on uninitialised memory)"
            ) from None
    with atomic_path(directory / MODEL_FILE) as temporary:
        model.save_model(str(temporary))
    facts = {
        "trained_on": _by_name(counts),
        "held_out": _by_name({label: len(some) for label, some in tests.items()}),
        **_quality({label: _scores(model, some) for label, some in tests.items()}),
        "options": options,
        "seed": seed,
        "sha256": sha256_of_file(directory / MODEL_FILE),
    }
    write_json(directory / FACTS_FILE, facts)
    return facts


def _scores(model: Any, lines: list[str]) -> list[float]:
    labels, probabilities = model.predict(lines, k=2)
    found = [dict(zip(some, values, strict=True)) for some, values in zip(labels, probabilities, strict=True)]
    # fastText's softmax can be slightly above 1, and it returns no label for a text without a known word.
    return [min(1.0, float(values.get(_GOOD, 0.0))) for values in found]


def _quality(scores: dict[str, list[float]]) -> dict[str, Any]:
    """Accuracy at a score of 0.5, area under the ROC curve, and mean scores."""
    good, web = (np.asarray(scores[label]) for label in (_GOOD, _WEB))
    right = np.sum(good >= 0.5) + np.sum(web < 0.5)
    # The AUC is the share of pairs that are in the right order; a tie counts as half a pair.
    ordered = np.sort(web)
    below, upto = np.searchsorted(ordered, good, side="left"), np.searchsorted(ordered, good, side="right")
    return {
        "accuracy": float(right / (len(good) + len(web))),
        "auc": float(np.mean((below + upto) / 2) / len(web)),
        "mean_score": _by_name({_GOOD: float(good.mean()), _WEB: float(web.mean())}),
    }


def _by_name(by_label: dict[str, Any]) -> dict[str, Any]:
    return {label.removeprefix("__label__"): value for label, value in by_label.items()}


def _fasttext() -> Any:
    import fasttext  # here, because only scoring and training need its shared library

    return fasttext
