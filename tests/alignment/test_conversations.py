"""Records of public datasets as conversations and pairs: shapes, names of roles, and rows that cannot be used."""

import datetime
import json

import datasets
import pytest

from allam_jax.alignment.chat_files import chat_files, chat_records
from allam_jax.alignment.conversations import BadRow, conversation_of, pair_of
from allam_jax.errors import UserError

QUESTION, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [QUESTION, ANSWER]}, [QUESTION, ANSWER]),
        ({"messages": [SYSTEM, QUESTION, ANSWER]}, [SYSTEM, QUESTION, ANSWER]),
        (
            {
                "system": "be brief",
                "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}],
            },
            [SYSTEM, QUESTION, ANSWER],
        ),
        (
            {"messages": [{"role": "\u200fالمُستخدِم", "content": "hi"}, {"role": "مساعـد", "content": "yes"}]},
            [QUESTION, ANSWER],
        ),
        (
            {"messages": [{"role": " Human ", "text": "hi"}, {"role": "<|assistant|>", "text": "yes"}]},
            [QUESTION, ANSWER],
        ),
        ({"instruction": "hi", "input": "", "output": "yes"}, [QUESTION, ANSWER]),
        ({"instruction": "hi", "input": "x", "output": "yes"}, [{"role": "user", "content": "hi\n\nx"}, ANSWER]),
        ({"prompt": "hi", "completion": "yes", "system": "be brief"}, [SYSTEM, QUESTION, ANSWER]),
        ({"prompt": [QUESTION], "completion": [ANSWER]}, [QUESTION, ANSWER]),
        ({"instruction": "hi", "output": "yes", "history": float("nan")}, [QUESTION, ANSWER]),
        ({"instruction": "hi", "output": "yes", "history": [["hi", "yes"]]}, [QUESTION, ANSWER, QUESTION, ANSWER]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"text": "i"}]}, ANSWER]},
            [QUESTION, ANSWER],
        ),
        ({"messages": [QUESTION | {"name": None}, ANSWER | {"weight": 1}]}, [QUESTION, ANSWER | {"weight": 1}]),
    ],
)
def test_shapes(record, expected):
    assert conversation_of(record) == tuple(expected)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "no conversation: it has neither"),
        ({"messages": "x"}, "'messages' is no list"),
        ({"messages": ["x"]}, "a message is no object"),
        ({"messages": [{"content": "x"}]}, "a message without role"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'"),
        ({"messages": [QUESTION]}, "no reply"),
        ({"messages": []}, "no reply"),
        ({"messages": [QUESTION, ANSWER, QUESTION]}, "ends without a reply"),
        ({"messages": [QUESTION, QUESTION, ANSWER]}, "roles do not alternate"),
        ({"messages": [QUESTION, ANSWER, ANSWER]}, "roles do not alternate"),
        ({"messages": [ANSWER, QUESTION, ANSWER]}, "begins with a reply"),
        ({"messages": [SYSTEM, ANSWER]}, "begins with a reply"),
        ({"messages": [QUESTION, SYSTEM, ANSWER]}, "a system message in the middle"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " \n"}]}, "empty content"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, "empty content"),
        ({"instruction": "hi", "output": ""}, "empty content"),
        ({"messages": [QUESTION, {"role": "assistant", "content": 3}]}, "content that is no text"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "\ud800"}]}, "content with invalid Unicode"),
        ({"instruction": "hi", "output": "yes", "history": ["hi"]}, "'history' is no list of questions"),
        ({"instruction": "hi", "output": "yes", "history": 5}, "'history' is no list of questions"),
        ({"instruction": "hi", "output": "yes", "history": True}, "'history' is no list of questions"),
        ({"prompt": [QUESTION], "completion": [ANSWER], "history": [["hi", "yes"]]}, "'history' beside a prompt"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "text": None}, {"text": "hi"}]}, ANSWER]},
            "parts that are no text",
        ),
        ({"messages": [QUESTION, ANSWER | {"weight": 0.5}]}, "weight is neither 0 nor 1"),
        ({"messages": [QUESTION, ANSWER | {"train": "false"}]}, "weight is neither 0 nor 1"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool calls without"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [{}]}]}, "tool calls without"),
    ],
)
def test_rows_that_cannot_be_used_say_why(record, reason):
    with pytest.raises(BadRow, match=reason):
        conversation_of(record)


NO = {"role": "assistant", "content": "no"}


@pytest.mark.parametrize(
    ("record", "shared"),
    [
        ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, 1),
        ({"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, NO]}, 1),
        ({"prompt": "hi", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, NO]}, 1),
        ({"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [NO]}, 1),
        ({"question": "hi", "system": "be brief", "chosen": "yes", "rejected": "no"}, 2),
        ({"prompt": "hi", "chosen": ANSWER, "rejected": NO}, 1),
        ({"system": "be brief", "conversations": [QUESTION], "chosen": ANSWER, "rejected": NO}, 2),
        ({"system": "be brief", "prompt": [QUESTION], "chosen": [ANSWER], "rejected": [NO]}, 2),
        ({"system": "be brief", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, NO]}, 2),
        ({"system": "be brief", "chosen": [SYSTEM, QUESTION, ANSWER], "rejected": [SYSTEM, QUESTION, NO]}, 2),
        ({"prompt": [SYSTEM, QUESTION], "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, NO]}, 2),
        ({"chosen": [QUESTION, ANSWER, QUESTION, ANSWER], "rejected": [QUESTION, ANSWER, QUESTION, NO]}, 3),
    ],
)
def test_pairs(record, shared):
    pair = pair_of(record)
    assert (pair.shared, pair.chosen[-1], pair.rejected[-1]) == (shared, ANSWER, NO)
    assert pair.chosen[:shared] == pair.rejected[:shared]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "no field 'rejected'"),
        ({"prompt": "hi", "chosen": "yes", "rejected": "yes"}, "chosen and rejected are equal"),
        ({"chosen": "yes", "rejected": "no"}, "'chosen' is a text, and there is no prompt"),
        ({"prompt": "hi", "chosen": "yes", "rejected": " "}, "empty content"),
        (
            {"chosen": [QUESTION, ANSWER], "rejected": [{"role": "user", "content": "other"}, NO]},
            "answer different prompts",
        ),
        (
            {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER, QUESTION, NO]},
            "one side is the beginning of the other",
        ),
    ],
)
def test_pairs_that_cannot_be_used_say_why(record, reason):
    with pytest.raises(BadRow, match=reason):
        pair_of(record)


def test_every_kind_of_file_gives_the_same_records(tmp_path):
    records = [{"messages": [QUESTION, ANSWER | {"content": text}]} for text in ("yes", "نعم", "no")]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    dataset = datasets.Dataset.from_list(records)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "splits")
    for place in ("a.jsonl", "a.json", "a.parquet", "saved", "splits"):
        found = [record for file in chat_files(str(tmp_path / place)) for record in chat_records(file)]
        assert [conversation_of(record) for record in found] == [tuple(record["messages"]) for record in records], place


def test_what_holds_no_conversations_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.json").write_text('{"a": 1}')
    datasets.Dataset.from_list([{"text": "x"}]).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(UserError, match="conversations are read from JSON Lines"):
        chat_files(str(tmp_path / "a.txt"))
    for name, message in (("b.json", "expected a list of records"), ("c.parquet", "no column of a conversation")):
        with pytest.raises(UserError, match=message):
            list(chat_records(chat_files(str(tmp_path / name))[0]))


def test_a_folder_gives_the_records_of_all_its_kinds(tmp_path):
    record = {"messages": [QUESTION, ANSWER]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "b.json").write_text(json.dumps([record, record]))
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [file.name for file in chat_files(str(tmp_path))] == ["a.jsonl", "b.json"]
    assert sum(1 for file in chat_files(str(tmp_path)) for _ in chat_records(file)) == 3


def test_times_and_bytes_of_a_saved_dataset_are_plain_values(tmp_path):
    time = datetime.datetime(2024, 1, 2, 3, 4, 5)
    messages = [QUESTION | {"at": time}, ANSWER | {"at": time}]
    datasets.Dataset.from_list([{"messages": messages, "raw": b"x"}]).save_to_disk(tmp_path / "saved")
    (record,) = (one for file in chat_files(str(tmp_path / "saved")) for one in chat_records(file))
    assert json.loads(json.dumps(record))["messages"][0]["at"] == "2024-01-02T03:04:05"
    state = tmp_path / "saved" / "state.json"
    state.write_text(json.dumps({"_data_files": ["data.arrow"]}))
    with pytest.raises(UserError, match="no list of objects"):
        chat_files(str(tmp_path / "saved"))


def test_every_column_of_parquet_is_read_where_asked(tmp_path):
    datasets.Dataset.from_list([{"id": 7, "messages": [QUESTION, ANSWER]}]).to_parquet(tmp_path / "a.parquet")
    (record,) = chat_records(tmp_path / "a.parquet", every_column=True)
    assert record["id"] == 7
