"""Answers over a grid, which of them can be rejected sides, and where each comes from."""

import collections
import dataclasses
import itertools
from typing import ClassVar

import pytest

from allam_jax.alignment.answer_grid import GridBackend, asked_of, grid_of, pairs_of, similarity
from allam_jax.alignment.conversations import pair_of
from allam_jax.alignment.settings import PreferenceSettings
from allam_jax.errors import UserError
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.generation.rows import Prompt

QUESTION = {"role": "user", "content": "What is the capital of Egypt?"}
CHOSEN = "The capital of Egypt is Cairo."
ARABIC = "عاصمة مصر هي القاهرة وليست غيرها"


@dataclasses.dataclass
class Echo:
    """Answers with its name and the row; cannot answer some rows. Only one may be under way, as with one engine."""

    name: str
    fails: tuple[int, ...] = ()
    busy: ClassVar[set[str]] = set()

    def describe(self):
        return {"name": self.name}

    def answers(self, prompts):
        assert not self.busy
        self.busy.add(self.name)
        for prompt in prompts:
            if prompt.row in self.fails:
                yield RowAnswer(error="no")
            else:
                yield RowAnswer((Choice(f"{self.name}{prompt.row}", "stop", 1),), 3)
        self.busy.remove(self.name)


def test_every_point_answers_every_prompt_and_order_is_kept():
    backend = GridBackend([Echo("a"), Echo("b", fails=(70,))])
    asked = []

    def prompts():
        for number in range(150):
            asked.append(number)
            yield Prompt(number, "x")

    answers = backend.answers(prompts())
    first = next(answers)
    assert [choice.text for choice in first.choices] == ["a0", "b0"]
    assert len(asked) < 150  # rows are taken as they are needed
    rest = [first, *answers]
    assert [answer.error for answer in rest] == ["no" if number == 70 else "" for number in range(150)]
    assert [choice.text for choice in rest[149].choices] == ["a149", "b149"]
    assert backend.describe() == {"grid": [{"name": "a"}, {"name": "b"}]}


def test_the_grid_has_ten_points_with_seeds_of_their_own():
    grid = grid_of(PreferenceSettings(), seed=2**32 - 3)
    assert len({(at.temperature, at.top_p) for at in grid}) == len({at.seed for at in grid}) == 10
    with pytest.raises(UserError, match="at least one value each"):
        PreferenceSettings(top_ps=())


def test_a_conversation_asks_for_its_last_reply():
    messages = [QUESTION, {"role": "assistant", "content": "a"}, QUESTION, {"role": "assistant", "content": CHOSEN}]
    prompt = asked_of(3, {"messages": messages})
    assert (prompt.row, prompt.asked, prompt.kept) == (3, tuple(messages[:-1]), {"chosen": CHOSEN})
    assert asked_of(4, {"messages": messages[:1]}).problem == "no reply"
    excluded = messages[-1] | {"weight": 0}
    assert asked_of(4, {"messages": [QUESTION, excluded]}).problem == "no reply is to be learned"
    more = [*messages, {"role": "user", "content": "more"}, excluded]
    assert asked_of(3, {"messages": more}) == prompt
    assert asked_of(5, "not JSON").problem == "a row not JSON"


def answered(*texts):
    answers = [{"text": text, "finish_reason": reason, "tokens": 3} for text, reason in texts]
    return {"row": 7, "messages": [QUESTION], "chosen": CHOSEN, "answers": answers}


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("It is Alexandria, I think.", "stop", ""),
        ("  \n", "stop", "empty"),
        ("It is Alexandria, I", "length", "cut"),
        ("the capital of egypt is CAIRO!", "stop", "equal or too near to the chosen"),
        ("The capital of Egypt is Cairo, it is.", "stop", "equal or too near to the chosen"),
        (ARABIC, "stop", "another language"),
        ("Je pense que la capitale de ce pays est Alexandrie.", "stop", "another language"),
        ("42", "stop", ""),
    ],
)
def test_which_answers_can_be_rejected_sides(text, reason, expected):
    settings, left_out = PreferenceSettings(most_similar=0.6), collections.Counter()
    row = answered((text, reason))
    points = [{"temperature": 1.0}] * 10
    pairs = list(pairs_of(row, settings=settings, points=points, left_out=left_out))
    assert dict(left_out) == ({expected: 1} if expected else {})
    assert len(pairs) == (not expected)
    lax = dataclasses.replace(settings, keep_cut=True, keep_other_language=True)
    if expected in ("cut", "another language"):
        assert list(pairs_of(row, settings=lax, points=points, left_out=left_out))


def test_pairs_say_where_they_come_from_and_are_pairs_for_dpo():
    settings = PreferenceSettings(samples=2, pairs_of_prompt=2, temperatures=(0.5, 1.5), top_ps=(1.0,))
    points = [{"temperature": at.temperature} for at in grid_of(settings, seed=0)]
    texts = ["", "It is Alexandria.", "It is alexandria", "It is Giza, a city by the river.", "Never used at all"]
    row = answered(*((text, "stop") for text in texts))
    left_out = collections.Counter()
    pairs = list(pairs_of(row, settings=settings, points=[*points, {"temperature": 9}], left_out=left_out))
    assert [pair["provenance"] for pair in pairs] == [
        {"temperature": 0.5, "sample": 1},
        {"temperature": 1.5, "sample": 1},
    ]
    assert dict(left_out) == {"empty": 1, "equal or too near to another": 1}
    read = pair_of(pairs[1])
    assert (read.shared, read.chosen[-1]["content"], read.rejected[-1]["content"]) == (1, CHOSEN, texts[3])


def test_similarity_is_jaccard_on_pairs_of_words():
    assert similarity("a b c", "A, b c.") == similarity("قَالَ", "قال") == 1
    one, other = ["a", "b", "c", "d"], ["a", "b", "c", "e"]
    pairs = [set(itertools.pairwise(["", *words])) for words in (one, other)]
    expected = len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
    assert similarity(" ".join(one), " ".join(other)) == pytest.approx(expected) == pytest.approx(3 / 5)
    assert similarity("a", "") == 0
