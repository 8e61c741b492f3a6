"""What is counted of watched answers, and when it is told."""

import types

import numpy as np
import pytest
from packed_chats import packed, pair_samples

from allam_jax.alignment.settings import WatchSettings
from allam_jax.alignment.text_measures import repeated_share
from allam_jax.alignment.watched_answers import answer_watcher, prompts_of, watched_answers
from allam_jax.generation.requests import Completion


class Answering:
    """An engine that has its answers ready."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def complete(self, requests):
        for request, (text, reason) in zip(requests, self.answers, strict=True):
            self.asked.append(request)
            yield Completion(request.name, 0, (), text, (), reason)


def test_a_share_of_repeated_grams():
    assert repeated_share(["a", "b", "c", "d"]) == repeated_share([]) == 0.0
    assert repeated_share(["a", "b"] * 4, n=2) == pytest.approx(1 - 2 / 7)  # ab ba ab ba ab ba ab
    assert repeated_share(["x"] * 23) == pytest.approx(1 - 1 / 20)


def test_scores_are_means_over_the_answers():
    answers = [("so " * 7, "length"), ("قال المعلم نعم", "stop"), (" ", "stop"), ("a b c d e", "stop")]
    engine = Answering(answers)
    settings = WatchSettings(prompts=4, max_new_tokens=7, temperature=0.5)
    found = watched_answers([[1], [2], [3], [4, 5]], settings=settings, open_engine=lambda params: engine)(None)
    assert found == {"watched": pytest.approx({"repetition": 0.75 / 4, "words": 15 / 4, "cut": 0.25, "empty": 0.25})}
    assert engine.asked[3].prompt_ids == (4, 5)
    assert (engine.asked[0].sampling.max_new_tokens, engine.asked[0].sampling.temperature) == (7, 0.5)


def test_prompts_end_where_the_first_learned_reply_begins(tmp_path):
    rows = packed(pair_samples(tmp_path / "pairs"), together=2)
    prompts = prompts_of(rows, WatchSettings(prompts=3, max_new_tokens=8), room=200)
    samples = [rows.samples[number] for number in rows.items[:, 0]]
    assert prompts == [samples[place].ids[: np.flatnonzero(samples[place].turns)[0]].tolist() for place in (0, 2, 4)]
    shortest = min(map(len, prompts_of(rows, WatchSettings(prompts=9, max_new_tokens=8), room=200)))
    for room, count in ((shortest + 8, 1), (shortest + 7, 0)):
        assert len(prompts_of(rows, WatchSettings(prompts=9, max_new_tokens=8), room=room)) == count
    assert prompts_of(rows, WatchSettings(prompts=0), room=200) == []
    assert prompts_of(types.SimpleNamespace(items=np.zeros((0, 2), int)), WatchSettings(prompts=3), room=200) == []


def test_more_repetition_than_at_the_beginning_is_told_once(caplog):
    watch = answer_watcher()
    for step, value in enumerate((0.05, 0.14, 0.2, 0.6)):
        assert watch({"step": step, "loss": 1.0, "eval/answers/watched/repetition": value}) is None
    assert [record.message.partition(":")[0] for record in caplog.records] == ["step 2"]
    assert "repetition of the watched answers is 0.20, and was 0.05" in caplog.text
