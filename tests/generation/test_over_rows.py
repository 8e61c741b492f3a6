"""Rows through a model: order, resumption after kill -9, errors, and what they are read from."""

import dataclasses
import itertools
import json
import os
import random
import signal
import time

import pyarrow
import pyarrow.parquet
import pytest
from mapped_rows import mapped, rows_of
from small_server import make_engine, make_tokenizer

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.errors import UserError
from allam_jax.generation.engine_backend import EngineBackend
from allam_jax.generation.over_rows import Choice, RowAnswer, read_answers
from allam_jax.generation.requests import Request, Sampling
from allam_jax.generation.rows import Prompt, PromptRows


class Echo:
    """A backend that repeats the prompt, with as many rows ahead as it likes."""

    def __init__(self, *, ahead=7, delay=0.0, kind="echo", log=None):
        self.ahead, self.delay, self.kind, self.asked, self.log = ahead, delay, kind, [], log

    def describe(self):
        return {"model": self.kind}

    def answers(self, prompts):
        prompts = iter(prompts)
        while some := list(itertools.islice(prompts, self.ahead)):
            for prompt in some:
                self.asked.append(prompt.row)
                if self.log:
                    with open(self.log, "a") as file:
                        print(prompt.row, file=file)
                time.sleep(self.delay)
                yield RowAnswer(error="odd") if prompt.asked == "odd" else RowAnswer((Choice(prompt.asked, "stop", 1),))


def numbers(directory):
    """Row numbers of answers and of errors."""
    errors = [json.loads(line) for f in sorted((directory / "errors").iterdir()) for line in f.open()]
    return [record["row"] for record in read_answers(directory)], [record["row"] for record in errors]


def test_rows_keep_their_order_and_errors_lie_beside(tmp_path):
    result = mapped(rows_of(37, bad={0, 4, 5, 9, 10, 36}), Echo(), tmp_path)
    assert result == {"rows": 37, "answered": 31, "errors": {"a row not JSON": 6}}
    answered, errors = numbers(tmp_path)
    assert errors == [0, 4, 5, 9, 10, 36]
    assert answered == [n for n in range(37) if n not in errors]
    record = list(read_answers(tmp_path))[3]
    assert record == {
        "row": 6,
        "id": "i6",
        "prompt": "row 6",
        "answers": [{"text": "row 6", "finish_reason": "stop", "tokens": 1}],
        "prompt_tokens": 0,
    }
    assert sorted(file.name for file in (tmp_path / "answers").iterdir()) == [f"0000{n}.jsonl" for n in range(4)]
    again = Echo()
    assert mapped(rows_of(37, bad={0, 4, 5, 9, 10, 36}), again, tmp_path) == result
    assert again.asked == []


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_any_number_of_rows(tmp_path, count):
    assert mapped(rows_of(count), Echo(), tmp_path)["answered"] == count
    assert numbers(tmp_path) == (list(range(count)), [])


def test_no_row_is_missing_or_twice_after_kills(tmp_path):
    """The process is killed six times and then ends by itself; it repeats no row but those that were ahead."""
    count, kills, ahead = 200, 6, 7
    rows, rng = rows_of(count, bad=range(0, count, 9)), random.Random(3)
    (tmp_path / "asked").touch()
    out = tmp_path / "out"
    for _ in range(kills):
        before = len((tmp_path / "asked").read_text().split())
        if (pid := os.fork()) == 0:
            mapped(rows, Echo(ahead=ahead, delay=0.001, log=tmp_path / "asked"), out)
            os._exit(0)
        while len((tmp_path / "asked").read_text().split()) < before + 15:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    mapped(rows, Echo(ahead=ahead, log=tmp_path / "asked"), out)
    answered, errors = numbers(out)
    assert errors == list(range(0, count, 9))
    assert sorted(answered + errors) == list(range(count))
    asked = (tmp_path / "asked").read_text().split()
    assert len(set(asked)) == len(answered)
    assert len(asked) <= len(answered) + kills * ahead
    assert not [name for name in os.listdir(out / "answers") if name.startswith(".")]
    assert not os.listdir(out / "unfinished")


@pytest.mark.parametrize("tail", [b"", b'{"row": 7, "pro', b'{"row": 7}', b"\0\0\0\n", b"7\n"])
def test_rows_of_an_unfinished_shard_are_not_asked_again(tmp_path, tail):
    """Wherever a kill or a crash of the machine has cut the file; a run that nobody stopped has the same bytes."""
    rows = rows_of(24, bad=(3, 15))
    mapped(rows, Echo(), tmp_path / "whole")

    class Stopped(Echo):
        def answers(self, prompts):
            yield from itertools.islice(super().answers(prompts), 16)
            raise UserError("gone")

    with pytest.raises(UserError, match=r"gone \(18 of 24 rows are done, 2 of them errors\)"):
        mapped(rows, Stopped(), tmp_path / "out")
    (unfinished,) = (tmp_path / "out" / "unfinished").iterdir()
    assert unfinished.name == "00001.jsonl"
    with unfinished.open("ab") as file:
        file.write(tail)
    (unfinished.parent / "00000.jsonl").write_text("of a shard that is complete\n")
    last = Echo()
    result = mapped(rows, last, tmp_path / "out")
    assert last.asked == list(range(18, 24))
    assert result == {"rows": 24, "answered": 22, "errors": {"a row not JSON": 2}}
    files = [sorted(f.relative_to(d) for f in d.rglob("*") if f.is_file()) for d in tmp_path.iterdir()]
    assert files[0] == files[1]
    assert all((tmp_path / "out" / f).read_bytes() == (tmp_path / "whole" / f).read_bytes() for f in files[0])


def test_another_model_or_input_is_refused(tmp_path):
    mapped(rows_of(5), Echo(), tmp_path)
    with pytest.raises(UserError, match="made with another model"):
        mapped(rows_of(5), Echo(kind="other"), tmp_path)
    with pytest.raises(UserError, match="made with another input and shard_rows"):
        mapped(rows_of(5), Echo(), tmp_path, identity={"input": "y"}, shard_rows=3)


def test_too_many_errors_end_the_run_and_lose_nothing(tmp_path):
    rows = [Prompt(n, "odd" if n >= 20 else "x") for n in range(100)]
    with pytest.raises(UserError, match=r"20 of 40 rows have no answer \(20 odd"):
        mapped(rows, Echo(), tmp_path, max_error_share=0.4)
    assert numbers(tmp_path) == (list(range(20)), list(range(20, 40)))


def test_a_few_rows_that_are_all_errors_end_the_run(tmp_path):
    with pytest.raises(UserError, match=r"3 of 3 rows have no answer \(3 a row not JSON; all are in"):
        mapped(rows_of(3, bad=range(3)), Echo(), tmp_path)
    assert mapped(rows_of(3, bad=range(2)), Echo(), tmp_path / "one")["answered"] == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("3 tokens and 1,024 more: too long", "3 tokens and 1,024 more"),
        ("status 503: busy", "status 503"),
        ("/data/v2/chat template: no role 'tool' here: 3", "no role 'tool' here"),
        ("in/loop.jinja: takes more than 1 s", "takes more than 1 s"),
    ],
)
def test_reasons_are_counted_by_their_kind(tmp_path, error, kind):
    found = mapped([Prompt(n, "x", problem=error if n else "") for n in range(2)], Echo(), tmp_path)["errors"]
    assert found == {kind: 1}


def test_reasons_that_differ_in_numbers_are_one_and_the_first_is_told(tmp_path):
    rows = [Prompt(n, "x", problem=f"{n + 20} tokens: too many") for n in range(8)]
    with pytest.raises(UserError, match=r"8 of 8 rows have no answer \(8 20 tokens; all"):
        mapped(rows, Echo(), tmp_path / "all")
    rows[2] = Prompt(2, "x", problem="status 503: busy")
    found = mapped(rows, Echo(), tmp_path, max_error_share=1.0, shard_rows=3)
    assert found["errors"] == {"20 tokens": 7, "status 503": 1}
    (tmp_path / "answers" / "00001.jsonl").unlink()  # counts of what is written are read again
    assert mapped(rows, Echo(), tmp_path, max_error_share=1.0, shard_rows=3) == found


def test_a_kept_field_replaces_none_of_an_answers_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "row": 99}\n')
    with pytest.raises(UserError, match="generate.keep: answers have fields of their own called error, row"):
        PromptRows(str(tmp_path), split="train", field="prompt", keep=("row", "error", "x"))


# -- what rows are read from -------------------------------------------------------------------------------------------

RECORDS = [
    {"prompt": "مرحبا", "id": 7, "topic": "x"},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"text": "no prompt"},
    {"prompt": 3},
    {"messages": "hi"},
    {"prompt": "half \ud83d"},
    {"prompt": "x", "topic": ["half \ud83d"]},
]


def test_jsonl_rows(tmp_path):
    lines = [json.dumps(record) for record in RECORDS] + ["{", "3"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    rows = PromptRows(str(tmp_path), split="train", field="prompt", keep=("topic",))
    found = list(rows)
    assert len(rows) == len(found) == 9
    assert found[0] == Prompt(0, "مرحبا", {"id": 7, "topic": "x"})
    assert found[1].asked == RECORDS[1]["messages"]
    problems = [
        "no field 'prompt' and no 'messages': the row has text",
        "is not a string",
        "no list",
        "invalid Unicode",
        "invalid Unicode",
        "not JSON",
        "not a JSON object",
    ]
    for row, said in zip(found[2:], problems, strict=True):
        assert said in row.problem


def test_parquet_rows_and_datasets(tmp_path):
    conversations = [[{"role": "user", "content": f"q{n}"}] for n in range(3)]
    table = pyarrow.table({"messages": conversations, "id": ["a", "b", "c"], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"q": ["x", "y"]}), tmp_path / "p.parquet")
    not_utf8 = pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array([b"good", b"\xff"]).buffers())
    mixed = pyarrow.table({"messages": [None, None], "prompt": not_utf8})
    pyarrow.parquet.write_table(mixed, tmp_path / "mixed.parquet")
    given = {"split": "train", "keep": ("other",)}
    found = list(PromptRows(str(tmp_path / "m.parquet"), field="prompt", **given))
    assert [row.asked for row in found] == conversations
    assert found[1].kept == {"id": "b", "other": 2}
    assert [row.asked for row in PromptRows(str(tmp_path / "p.parquet"), field="q", **given)] == ["x", "y"]
    first, second = PromptRows(str(tmp_path / "mixed.parquet"), field="prompt", **given)
    assert (first.asked, second.problem) == ("good", "a row with field 'prompt' with invalid UTF-8")
    documents = (Document(text=f"d{n}", id=str(n), source="s", language="en") for n in range(8))
    write_dataset(documents, directory=tmp_path / "set", name="set", validation_share=0.0)
    rows = PromptRows(str(tmp_path / "set"), field="prompt", **given)
    assert sorted(row.asked for row in rows) == [f"d{n}" for n in range(8)]
    assert [row.row for row in rows] == list(range(8))


# -- our engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3])
def test_rows_keep_all_slots_busy(samples):
    tokenizer = make_tokenizer()
    engine = make_engine(tokenizer, slots=4, burst=4)
    sampling = Sampling(max_new_tokens=12, min_new_tokens=12, temperature=0.0, samples=samples)
    encode = lambda prompt: tokenizer.encode(prompt.asked, bos=True)  # noqa: E731
    backend = EngineBackend(engine, encode=encode, sampling=sampling, identity={})
    busy, step = [], engine.step

    def watched():
        deltas = step()
        busy.append(len({(delta.name, delta.sample) for delta in deltas if delta.ids}))
        return deltas

    engine.step = watched
    answers = list(backend.answers(Prompt(n, "the cat") for n in range(12)))
    assert [len(answer.choices) for answer in answers] == [samples] * 12
    assert busy == [4] * (12 * samples * 12 // (4 * 4))  # every burst gives four tokens to each of four samples


def test_the_engine_answers_rows_as_it_answers_alone(tmp_path):
    tokenizer = make_tokenizer()
    engine = make_engine(tokenizer)
    texts = ["the cat", "قال رسول", "x" * 400, "the dog ran", "", "sat"] * 4
    sampling = Sampling(max_new_tokens=12, temperature=1.0, samples=2, seed=5, logprobs=0)
    encode = lambda prompt: tokenizer.encode(prompt.asked, bos=True)  # noqa: E731
    backend = EngineBackend(engine, encode=encode, sampling=sampling, identity={"model": "m"})

    def answered(order, directory):
        result = mapped([Prompt(n, texts[n]) for n in order], backend, directory, max_error_share=1.0)
        return result, {record["row"]: record["answers"] for record in read_answers(directory)}

    order = list(range(len(texts)))
    result, found = answered(order, tmp_path / "a")
    assert result["answered"] == 20
    (reason,) = result["errors"]
    assert "tokens and max_new_tokens" in reason
    random.Random(0).shuffle(order)
    assert answered(order, tmp_path / "b")[1] == found  # neither the neighbours nor the order matter
    assert found[0] != found[6]  # equal prompts get other samples
    for row in (0, 1, 23):
        assert len({choice["text"] for choice in found[row]}) == 2
        assert all(len(choice["logprobs"]) == choice["tokens"] for choice in found[row])
    alone = dataclasses.replace(sampling, seed=backend.seed_of(1))
    completions = engine.complete([Request("x", tuple(tokenizer.encode(texts[1], bos=True)), alone)])
    assert [one.text for one in completions] == [choice["text"] for choice in found[1]]
