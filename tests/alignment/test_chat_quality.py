"""Faults of conversations: planted ones are found, and what shows them."""

import time

import pytest
from planted_faults import KINDS, planted

from allam_jax.alignment.chat_faults import examine
from allam_jax.alignment.chat_quality import evaluation_index, examined_rows, summary
from allam_jax.alignment.settings import CHAT_FAULTS, ChatQualitySettings
from allam_jax.alignment.text_measures import differ_in_language, is_request, lexical_diversity
from allam_jax.corpus.model_phrases import scaffold_in


def test_planted_faults_are_found_with_recall_and_precision():
    settings = ChatQualitySettings()
    records, evaluation, truth = planted(count=1600, share=0.01, seed=0)
    index = evaluation_index([{"question": text} for text in evaluation], n=settings.ngram)
    rows = examined_rows({"chats": records}, settings=settings, index=index)
    problems = {}
    for fault in sorted(set(KINDS.values())):
        wanted = {place for place, planted_fault in truth.items() if planted_fault == fault}
        found = {place for place, row in enumerate(rows) if fault in row.faults}
        recall, precision = len(wanted & found) / len(wanted), len(wanted & found) / max(len(found), 1)
        if min(recall, precision) < 0.95:
            examples = [(place, rows[place].faults, truth.get(place)) for place in wanted ^ found][:3]
            problems[fault] = (recall, precision, examples)
    assert not problems
    facts = summary(rows, settings)["chats"]
    assert facts["rows"] == len(records)
    dropped = {place for place, row in enumerate(rows) if row.dropped_for(settings)}
    assert facts["kept"] == len(records) - len(dropped)
    assert len(dropped - truth.keys()) <= 0.005 * len(records)


def conversation(*texts):
    roles = ["user", "assistant"] * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


LONG = "The road to the north leads over the hills, and in winter nobody takes it because of the snow and the wind."


@pytest.mark.parametrize(
    ("texts", "faults"),
    [
        (("What is the capital of Egypt?", "Cairo."), set()),
        (
            ("ترجم إلى الإنجليزية: الطريق إلى الشمال مغلق في الشتاء", "The road to the north is closed in winter."),
            set(),
        ),
        (("ما هو الطريق إلى الشمال في الشتاء؟", LONG), {"wrong language"}),
        (("Quel est le chemin vers le nord en hiver ?", LONG), {"wrong language"}),
        (("What is the capital of Egypt?", "Which one do you mean?"), set()),
        (("Cairo is the capital of Egypt.", "What is the capital of Egypt?"), {"roles swapped"}),
        (("Thanks!", "You are welcome. Anything else?", "What is your name?", "I have none."), set()),
        (("Tell me a story.", "and so on " * 20), {"repetition"}),
        (("Tell me a story.", "ha" * 30), {"repetition"}),
        (("Tell me a story.", "### Response: " + LONG), {"scaffold"}),
        (("Tell me a story.", "Sure, here’s one. " + LONG), {"scaffold"}),
        (("احك لي قصة.", "بصفتي نموذج لغة لا أستطيع أن أحكي قصة."), {"scaffold"}),
        (("احك لي قصة.", "كان هناك رجل, وكان له ولد, وكان الولد صغيرا."), {"translation smell"}),
        (("احك لي قصة.", "كان هناك رجل، وكان له ولد، وكان الولد صغيرا."), set()),
        (("Tell me a story.", "?!"), {"empty"}),
    ],
)
def test_faults_of_one_conversation(texts, faults):
    assert set(examine(conversation(*texts), most_similar=0.9).faults) == faults


@pytest.mark.parametrize(
    ("chosen", "rejected", "faults"),
    [
        ("Cairo is the capital.", "Luxor was a capital.", set()),
        ("Cairo is the capital of Egypt.", "Cairo is the capital of EGYPT!", {"sides alike"}),
        ("Cairo is the capital of Egypt.", "عاصمة مصر هي مدينة القاهرة", {"wrong language"}),
        ("Cairo.", "Cairo.", {"sides alike"}),
        ("The capital of Yemen is Sanaa.", "The capital of Yemen is Khartoum.", set()),
        ("x = a + b", "x = a - b", set()),
        ("if (a > b)", "if (a < b)", set()),
        ("Cairo.", "", {"empty"}),
    ],
)
def test_faults_of_a_pair(chosen, rejected, faults):
    pair = {"prompt": "What is the capital of Egypt?", "chosen": chosen, "rejected": rejected}
    assert set(examine(pair, most_similar=0.9).faults) == faults


def test_a_source_whose_replies_have_no_ends_has_no_cut_ones():
    records = [conversation("Tell me a story.", LONG[:-1] + f" {number}") for number in range(30)]
    rows = examined_rows({"chats": records}, settings=ChatQualitySettings(), index=None)
    assert not any("cut" in row.faults for row in rows)


def test_the_length_of_the_sides_is_reported():
    pairs = [
        {"prompt": f"Question {number}?", "chosen": "one two three " * chosen, "rejected": "one two three five"}
        for number, chosen in enumerate((1, 2, 3))
    ]
    rows = examined_rows({"pairs": pairs}, settings=ChatQualitySettings(), index=None)
    facts = summary(rows, ChatQualitySettings())["pairs"]
    assert facts["chosen_over_rejected_words"] == pytest.approx(6 / 4)
    assert facts["chosen_longer"] == pytest.approx(2 / 3)


def test_languages_and_diversity():
    assert differ_in_language("كان ياما كان في قديم الزمان", "Es war einmal vor langer Zeit ein König")
    assert not differ_in_language("Es war einmal vor langer Zeit ein König", "42")
    assert not differ_in_language("What is the capital of Yemen?", "The capital of Yemen is Sanaa.")
    words = [f"w{n % 25}" for n in range(110)]
    assert lexical_diversity(words) == pytest.approx(0.5)
    assert lexical_diversity(words[:49]) is None
    assert len(CHAT_FAULTS) == len(set(CHAT_FAULTS))


def test_a_measure_that_no_row_has_is_unknown():
    settings = ChatQualitySettings()
    records = {"short": [conversation("What is the capital of Egypt?", "Cairo.")], "none": [{"text": "x"}]}
    found = summary(examined_rows(records, settings=settings, index=None), settings)
    assert (found["short"]["lexical_diversity"], found["short"]["mean_words_of_reply"]) == (None, 1.0)
    assert found["none"]["mean_turns"] is found["none"]["mean_words_of_reply"] is None


def test_long_runs_of_one_character_take_linear_time():
    start = time.process_time()
    assert not scaffold_in("\n" * 50_000 + "x")
    assert scaffold_in("\n" * 50_000 + "  Human: x") == "Human:"
    assert not is_request("?" * 50_000 + "x")
    assert is_request("x" + "?" * 50_000)
    assert time.process_time() - start < 5
