"""Spoilt conversations and pairs: exactly so many, the others untouched, and their faults are found."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from allam_jax.alignment.chat_faults import examine
from allam_jax.alignment.conversations import conversation_of, pair_of
from allam_jax.alignment.damaged_chats import damaged_rows
from allam_jax.alignment.settings import CHAT_DAMAGES, DamageChatsSettings
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import base

REPLY = {
    "en": "The road to the north leads over the hills, and in winter nobody takes it, because of the snow, number {}.",
    "ar": "الطريق إلى الشمال يمر فوق التلال، وفي الشتاء لا يسلكه أحد بسبب الثلج والريح القوية، رقم {}.",
}
ASKED = {"en": "Which way leads to the north?", "ar": "أي طريق يؤدي إلى الشمال؟"}
CHATS = {
    name: [
        {"messages": [{"role": "user", "content": ASKED[name]}, {"role": "assistant", "content": text.format(number)}]}
        for number in range(100)
    ]
    for name, text in REPLY.items()
}
PAIRS = {"pairs": [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(200)]}


def kinds_of(found):
    return {(name, place): row.kind for name, rows in found.items() for place, row in enumerate(rows) if row.kind}


def test_every_kind_spoils_its_own_rows_and_no_others():
    kinds = tuple(kind for kind in CHAT_DAMAGES if kind != "flipped")
    found = damaged_rows(CHATS, settings=DamageChatsSettings(kinds=kinds, share=0.1), seed=0)
    spoilt = kinds_of(found)
    assert {kind: list(spoilt.values()).count(kind) for kind in kinds} == dict.fromkeys(kinds, 20)
    for name, rows in found.items():
        for place, (record, kind) in enumerate(rows):
            if not kind:
                assert record is CHATS[name][place]
    # What was done shows in the faults that task sft_quality finds; a reply that is cut shows beside others.
    faults = {"empty": "empty", "other language": "wrong language", "repetition": "repetition", "scaffold": "scaffold"}
    for rows in found.values():
        for record, kind in rows:
            assert set(examine(record, most_similar=0.9).faults) == ({faults[kind]} if kind in faults else set())
            if kind == "cut":
                assert examine(record, most_similar=0.9).reply_words[0] <= 11


def test_a_smaller_share_is_a_part_of_a_larger_one():
    def places(share, **more):
        return kinds_of(damaged_rows(CHATS, settings=DamageChatsSettings(kinds=("cut",), share=share, **more), seed=1))

    assert len(places(0.05)) == 10
    assert places(0.05).items() < places(0.2).items()
    assert kinds_of(damaged_rows(CHATS, settings=DamageChatsSettings(kinds=("cut",), share=0.05), seed=2)) != places(
        0.05
    )

    def texts(kept):
        rows = damaged_rows(CHATS, settings=DamageChatsSettings(kept=kept), seed=1)
        return [json.dumps(row.record) for own in rows.values() for row in own]

    assert len(texts(0.125)) == 25
    assert set(texts(0.125)) < set(texts(0.5)) < set(texts(1.0))
    assert texts(1.0) == [json.dumps(record) for own in CHATS.values() for record in own]


def test_flipped_pairs_have_their_sides_exchanged(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS["pairs"]))
    config = base.get_config("damage_chats")
    config.damage_chats.sources.pairs = base.conversations(path=f"{tmp_path}/pairs.jsonl")
    config.damage_chats.update(kinds=("flipped",), share=0.06)
    found = runner.run(config, workdir=tmp_path / "out")
    assert found == {"pairs": {"rows": 200, "damaged": {"flipped": 12}}}
    written = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in (tmp_path / "out" / "truth.jsonl").read_text().splitlines()]
    flipped = {row["row"] for row in truth}
    assert len(flipped) == 12
    for place, (before, after) in enumerate(zip(PAIRS["pairs"], written, strict=True)):
        before, after = pair_of(before), pair_of(after)
        assert (after.chosen, after.rejected, after.shared) == (
            (before.rejected, before.chosen, 1) if place in flipped else (before.chosen, before.rejected, 1)
        )


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        (PAIRS, {"kinds": ("flipped",), "share": 0.04}, r"0\.04 of 200 rows \(flipped\) are 8, which shows no effect"),
        (CHATS, {"kept": 0.01}, r"0\.01 of 200 rows \(kept\) are 2"),
        (CHATS, {"kinds": ("flipped",), "share": 0.1}, r"sources\.\w\w: row \d+ cannot be spoilt by 'flipped': no"),
        ({"en": CHATS["en"]}, {"kinds": ("other language",), "share": 0.1}, "needs a second source"),
        ({"en": CHATS["en"], "ar": []}, {"kinds": ("other language",), "share": 0.1}, "needs a second source"),
        (CHATS, {"kinds": ("cut", "empty", "scaffold"), "share": 0.4}, r"\(scaffold\) are 80, but .* leave 40; lower"),
        (
            {"en": CHATS["en"], "ar": [{"text": "no chat"}]},
            {"kinds": ("other language",), "share": 0.2},
            "sources.en: row .* cannot be spoilt by 'other language': in a row of another source, no conversation",
        ),
    ],
)
def test_what_shows_nothing_or_cannot_be_done_is_refused(sources, settings, message):
    with pytest.raises(UserError, match=message):
        damaged_rows(sources, settings=DamageChatsSettings(**settings), seed=0)


def chat(reply, **more):
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": reply, **more}]}


@pytest.mark.parametrize(
    ("reply", "half"),
    [
        ("one two three four", "one two"),
        ("# A\n\n- one\n- two\n", "# A\n\n-"),
        ("北京是中国的首都", "北京是中"),
        ("Yes.", "Ye"),
        ("A", "…"),
    ],
)
def test_every_reply_has_a_half(reply, half):
    """Also one of a single word, as all are where no spaces are written; lines stay lines."""
    endless = f"{reply.rstrip()} " + " ".join(reply.split()[-3:] * 12)
    for kind, expected in (("cut", half), ("repetition", endless)):
        settings = DamageChatsSettings(kinds=(kind,), share=0.5)
        found = damaged_rows({"en": [chat(reply)] * 20}, settings=settings, seed=0)["en"]
        assert [row.record["messages"][-1]["content"] for row in found if row.kind] == [expected] * 10


def test_a_spoilt_row_keeps_its_other_fields():
    rows = {"en": [{**chat("one two", weight=0), "id": n, "system": "Be brief."} for n in range(20)]}
    found = damaged_rows(rows, settings=DamageChatsSettings(kinds=("cut",), share=0.5), seed=0)["en"]
    for number, (record, kind) in enumerate(found):
        assert record["id"] == number
        assert record["messages"][-1] == {"role": "assistant", "content": "one" if kind else "one two", "weight": 0}
        assert conversation_of(record)[0] == {"role": "system", "content": "Be brief."}


def test_a_reply_of_another_source_is_another_reply():
    """Numbers are the same in every language."""
    rows = {"en": [chat("1945")] * 100, "ar": [chat("1945")] * 99 + [chat("عام النصر")]}
    settings = DamageChatsSettings(kinds=("other language",), share=0.2)
    with pytest.raises(UserError, match="sources.ar: row .* every row of the other source has its reply; leave out"):
        damaged_rows(rows, settings=settings, seed=0)
    rows["en"][0] = chat("The year of the victory.")
    found = damaged_rows(rows, settings=settings, seed=0)
    for name, own in found.items():
        for before, (record, kind) in zip(rows[name], own, strict=True):
            assert bool(kind) == (record["messages"][-1]["content"] != before["messages"][-1]["content"])


def test_rows_that_are_not_spoilt_are_written_as_they_were(tmp_path):
    """Half of a surrogate pair too, which JSON can spell; but no reason in place of a value that cannot be read."""
    rows = [{**chat("one two"), "id": "\ud83d"} for _ in range(20)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = base.get_config("damage_chats")
    config.damage_chats.sources.en = base.conversations(path=f"{tmp_path}/chats.jsonl")
    runner.run(config, workdir=tmp_path / "out")
    assert [json.loads(line) for line in (tmp_path / "out" / "en.jsonl").read_text().splitlines()] == rows
    bad = pyarrow.array([b"yes \xff", *[b"yes"] * 19], pyarrow.binary()).view(pyarrow.string())
    columns = {"prompt": ["?"] * 20, "response": bad}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "bad.parquet")
    config.damage_chats.sources.en.path = f"{tmp_path}/bad.parquet"
    with pytest.raises(UserError, match=r"bad.parquet: row 0 cannot be read \(with invalid UTF-8\); leave out such"):
        runner.run(config, workdir=tmp_path / "other")
    config.damage_chats.sources.truth = base.conversations(path=f"{tmp_path}/chats.jsonl")
    with pytest.raises(UserError, match=r"damage_chats.sources.truth: the task writes a file of that name"):
        runner.run(config, workdir=tmp_path / "other")
