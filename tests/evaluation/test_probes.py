"""What the task probe asks: capitals, copying and retrieval, against scores and hidden states that are known."""

import io
import math
import struct
import tarfile

import jax
import numpy as np
import pytest

from allam_jax.corpus import catalog
from allam_jax.evaluation.capitals import capital_questions, capital_scores
from allam_jax.evaluation.copying import copying_scores
from allam_jax.evaluation.items import Question
from allam_jax.evaluation.sentence_retrieval import retrieval_accuracies
from allam_jax.evaluation.sentence_states import last_states, layer_states
from allam_jax.model.llama import bind
from allam_jax.model.llama_config import ComputeOptions
from tests.small_models import SMALL, init_jit

WORLD = {
    "Egypt": ("Cairo", "مصر", "القاهرة"),
    "Iraq": ("Baghdad", "العراق", "بغداد"),
    "Jordan": ("Amman", "الأردن", "عمّان"),
    "Qatar": ("Doha", "قطر", "الدوحة"),
    "Yemen": ("Sana'a", "اليمن", "صنعاء"),
    "Nowhere": ("Untranslated", "لا مكان", "Untranslated"),
}


def translations():
    """A .mo file with the names of the map."""
    texts = {"": "Content-Type: text/plain; charset=UTF-8\n"}
    for country, (capital, country_ar, capital_ar) in WORLD.items():
        texts |= {f"world.kgm\x04{country}": country_ar, f"world.kgm\x04{capital}": capital_ar}
    rows = sorted((key.encode(), value.encode()) for key, value in texts.items())
    tables, data, start = [], b"", 28 + 16 * len(rows)
    for column in (0, 1):
        for row in rows:
            tables.append(struct.pack("<2I", len(row[column]), start + len(data)))
            data += row[column] + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, 28 + 16 * len(rows))
    return header + b"".join(tables) + data


def debian_package(path):
    """A .deb: an `ar` archive with a tar file of what is installed."""
    divisions = "".join(f"<division><name>{k}</name><capital>{v[0]}</capital></division>" for k, v in WORLD.items())
    files = {
        "./usr/share/kgeography/world.kgm": f"<map><division><name>Sea</name></division>{divisions}</map>".encode(),
        "./usr/share/locale/ar/LC_MESSAGES/kgeography.mo": translations(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    content = b"!<arch>\n"
    for name, member in (("debian-binary", b"2.0"), ("data.tar.xz", buffer.getvalue())):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(member):<10}`\n".encode() + member
        content += b"\n" * (len(member) % 2)
    path.write_bytes(content)
    return path


def test_questions_are_the_same_in_both_languages(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "fetch", lambda package: debian_package(tmp_path / "package.deb"))
    asked = capital_questions(seed=3)
    assert asked == capital_questions(seed=3) != capital_questions(seed=4)
    assert sorted(question.id for question in asked["en"]) == ["Egypt", "Iraq", "Jordan", "Qatar", "Yemen"]
    in_arabic = {capital: capital_ar for capital, _, capital_ar in WORLD.values()}
    for english, arabic in zip(asked["en"], asked["ar"], strict=True):
        capital, country_ar, capital_ar = WORLD[english.id]
        assert (english.text, english.choices[english.answer]) == (english.id, capital)
        assert (arabic.text, arabic.choices[arabic.answer]) == (country_ar, capital_ar)
        assert arabic.choices == tuple(in_arabic[choice] for choice in english.choices)
        assert len(set(english.choices)) == 4


def test_capitals_are_scored_behind_the_examples():
    questions = [
        Question("a", "Land A", ("Ab", "Long name", "C", "D"), 1, ""),
        Question("b", "Land B", ("E", "F", "G", "H"), 0, ""),
    ]
    example = Question("x", "Land X", ("Right", "Wrong", "W", "V"), 0, "")
    seen = []
    # "Ab" is likelier than "Long name", but not for each byte.
    logprobs = [-4.0, -9.0, -8.0, -8.0, -1.0, -2.0, -3.0, -4.0]

    def score(texts):
        seen.extend(texts)
        return [(value, value == -1.0) for value in logprobs]

    found = capital_scores(questions, language="en", examples=[example], score=score)
    shown = "Question: What is the capital of Land X?\nAnswer: Right\n\n"
    assert seen[1] == (shown + "Question: What is the capital of Land A?\nAnswer:", " Long name")
    assert (found["accuracy"], found["by_bytes"], found["chance"], found["written"]) == (0.5, 1.0, 0.25, 0.5)


def test_copying_tells_who_has_read_the_words():
    def score(texts):  # a byte costs 1 bit where the context has the words already, else 3
        found = []
        for context, continuation in texts:
            first, start = context.split("\n")
            copied = first == start + continuation
            found.append((-(1 if copied else 3) * len(continuation.encode()) * math.log(2), copied))
        return found

    words = [f"word{number}" for number in range(30)] * 2
    found = copying_scores(words, lists=4, length=5, seed=0, score=score)
    assert found["copied"] == pytest.approx(1)
    assert found["other"] == pytest.approx(3)
    assert found["saved"] == pytest.approx(2 / 3)
    assert found["exact"] == 1


def test_translations_are_found_by_the_largest_cosine_of_centred_states():
    rng = np.random.default_rng(0)
    a_LND, b_LND = rng.standard_normal((2, 2, 12, 6))
    b_LND[1] = 3 * a_LND[1] + rng.standard_normal(6)  # of the second layer scaled and moved: all are found
    expected = []
    for a_ND, b_ND in zip(a_LND, b_LND, strict=True):
        hits = 0
        for first, second in ((a_ND, b_ND), (b_ND, a_ND)):
            for number in range(12):
                x = first[number] - first.mean(0)
                cosines = [x @ (y - second.mean(0)) / np.linalg.norm(y - second.mean(0)) for y in second]
                hits += int(np.argmax(cosines)) == number
        expected.append(hits / 24)
    assert retrieval_accuracies(a_LND, b_LND) == pytest.approx(expected)
    assert expected[1] == 1 > expected[0]


def test_states_of_a_sentence_are_those_of_the_whole_network():
    params = init_jit(jax.random.key(0), config=SMALL)
    rng = np.random.default_rng(0)
    sentences = [rng.integers(0, SMALL.vocab_size, length).tolist() for length in (3, 40, 7)]
    found = layer_states(params, sentences, config=SMALL, options=ComputeOptions())
    last = last_states(params, sentences, config=SMALL, options=ComputeOptions())
    assert found.shape == (SMALL.num_layers + 1, 3, SMALL.dim)
    model = bind(params, config=SMALL, options=ComputeOptions())
    for number, ids in enumerate(sentences):
        x_BTD = model.embed(np.array([ids]))
        kwargs = {"segment_ids_BT": np.ones((1, len(ids)), np.int32), "positions_BT": np.arange(len(ids))[None]}
        for layers in range(SMALL.num_layers + 1):
            y_BTD, _ = model.apply_layers(x_BTD, layers=slice(layers), **kwargs) if layers else (x_BTD, None)
            np.testing.assert_allclose(found[layers, number], np.mean(y_BTD[0], axis=0), rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(last[number], np.mean(model.finish(y_BTD)[0], axis=0), rtol=2e-4, atol=2e-5)
