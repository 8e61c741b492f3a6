"""The sampled time of a step against the sum over all documents."""

import pytest

from allam_jax.corpus import step_clock


@pytest.mark.parametrize("documents", [0, 1, 64, 70, 1000, 1007])
def test_documents_of_equal_time_are_counted_exactly_and_the_clock_is_read_seldom(documents, monkeypatch):
    now, reads = [0.0], []

    def thread_time():
        reads.append(now[0])
        return now[0]

    monkeypatch.setattr(step_clock.time, "thread_time", thread_time)
    clock = step_clock.StepClock()
    for _ in range(documents):
        clock.start()
        now[0] += 3.0  # the document
        clock.stop()
        now[0] += 100.0  # the steps after this one
    assert clock.seconds == pytest.approx(3.0 * documents)
    assert len(reads) <= 2 * (64 + documents / 16)
