"""The report of an adaptation: bytes seen against a count of the texts, and curves between their points."""

import numpy as np

from allam_jax.data.bytes_seen import bytes_of_steps
from allam_jax.tasks.adaptation_report import at


class Words:
    """A tokenizer of four ids: end of text, and words of 1, 2 and 4 bytes."""

    vocab_size = 4

    def is_special(self, index):
        return index == 0

    def token_bytes(self, index):
        return ["</s>", "a", "é", "😀"][index].encode()


class Batches:
    source_names = ("ar", "en")

    def __iter__(self):
        yield {
            "targets": np.array([[1, 2, 3, 0], [3, 3, 2, 1]]),
            "loss_weights": np.array([[1, 1, 1, 1], [1, 0, 1, 0]], np.float32),
            "source_ids": np.array([[0, 0, 1, 1], [1, 1, 0, 0]]),
        }


def test_bytes_are_those_of_the_targets_that_count():
    assert list(bytes_of_steps(Batches(), tokenizer=Words())) == [{"ar": 1 + 2 + 2, "en": 4 + 4}]


def test_a_curve_between_its_points():
    curve = [(0, 3.0), (10, 2.0), (30, 1.0)]
    assert [at(curve, place) for place in (0, 5, 10, 20, 30)] == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert at(curve, 31) is None
