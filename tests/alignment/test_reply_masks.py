"""What is learned of a conversation, token by token, against strings written by hand; traps of other trainers."""

import re

import numpy as np
import pytest
import sentencepiece
from small_chats import ARABIC, CONTROLS, ENGLISH, byte_level, masker, messages, ready, sentencepiece_tokenizer

from allam_jax.alignment.conversations import BadRow, pair_of
from allam_jax.alignment.reply_masks import Masker
from allam_jax.errors import UserError
from allam_jax.tokenizer.chat_template import ChatTemplate


def llama2(turns):
    """(text, whether it is learned), as Llama-2-chat was trained."""
    system = next((text for role, text in turns if role == "system"), None)
    rest = [(role, text) for role, text in turns if role != "system"]
    parts = []
    for number, (role, text) in enumerate(rest):
        if role == "user":
            head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and number == 0 else ""
            parts.append((f"<s>[INST] {head}{text} [/INST]", False))
        else:
            parts.append((f" {text} </s>", True))
    return parts


def llama3(turns):
    parts = [("<s>", False)]
    for role, text in turns:
        parts.append((f"<|start_header_id|>{role}<|end_header_id|>\n\n", False))
        parts.append((f"{text}<|eot_id|>", role == "assistant"))
    return parts


def chatml(turns):
    parts = []
    for role, text in turns:
        parts += [(f"<|im_start|>{role}\n", False), (f"{text}<|im_end|>", role == "assistant"), ("\n", False)]
    return parts


BY_HAND = {"llama2": llama2, "llama3": llama3, "chatml": chatml}


def offsets(text, kind):
    """Ids and character places of the tokens of a text, by the tokenizer's own library."""
    if kind == "byte_level":
        encoded = byte_level()[1].encode(text)
        return encoded.ids, encoded.offsets
    ours = sentencepiece_tokenizer()
    library = sentencepiece.SentencePieceProcessor(model_proto=ours.model.serialized())
    ids, places, at = [], [], 0
    for section in re.split(f"({'|'.join(map(re.escape, ['<s>', '</s>', *CONTROLS]))})", text):
        if section in ours.special_tokens:
            ids.append(ours.special_tokens[section])
            places.append((at, at + len(section)))
        elif section:
            begin = at
            for piece in library.encode(section, return_type="proto").pieces:  # its own places count bytes
                ids.append(piece.id)
                places.append((begin, begin + len(piece.surface)))
                begin += len(piece.surface)
        at += len(section)
    return ids, places


def samples_of(made, turns, *, learned):
    """The samples of one conversation, and why others are left out; BadRow is raised."""
    (found,) = made.samples([turns], learned=learned)
    if isinstance(found, BadRow):
        raise found
    return found.samples, found.left_out


def sides_of(made, pair):
    (found,) = made.pairs([pair])
    return found.samples, found.left_out


def expected(turns, template, kind, *, learned):
    """Ids and numbers of replies; `learned` are the numbers of the replies that count."""
    parts = BY_HAND[template](turns)
    ids, places = offsets("".join(text for text, _ in parts), kind)
    spans, at, number = [], 0, 0
    for text, is_reply in parts:
        number += is_reply
        spans.append((at, at + len(text), number if is_reply and number in learned else 0))
        at += len(text)
    owners = [next(owner for start, end, owner in spans if start <= place[0] < end) for place in places]
    return ids, owners


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
@pytest.mark.parametrize("template", BY_HAND)
@pytest.mark.parametrize("turns", [ENGLISH, ARABIC], ids=["english", "arabic"])
def test_figure_11_token_by_token(turns, template, kind, marked):
    tokenizer = byte_level()[0] if kind == "byte_level" else sentencepiece_tokenizer()
    made = masker(template, tokenizer=tokenizer, marked=marked)
    replies = sum(role == "assistant" for role, _ in turns)
    first_user = int(turns[0][0] == "system")
    kept = [turns[: first_user + 2 * k] for k in range(1, replies + 1)]  # turns 1 to k
    wanted = {
        "augmented": [expected(kept[k - 1], template, kind, learned={k}) for k in range(1, replies + 1)],
        "all": [expected(turns, template, kind, learned=set(range(1, replies + 1)))],
        "last": [expected(turns, template, kind, learned={replies})],
    }
    for learned, reference in wanted.items():
        samples, left_out = samples_of(made, messages(turns), learned=learned)
        assert left_out == []
        assert [(sample.ids.tolist(), sample.turns.tolist()) for sample in samples] == reference


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("exclude", [{"weight": 0}, {"train": False, "weight": 1}, {"loss": 0.0}])
def test_replies_that_the_data_exclude_are_not_learned(exclude, marked):
    """Those of `weight: 0` (OpenAI), `train: false` (axolotl) and `loss: false` (ms-swift) are context only."""
    made = masker("chatml", marked=marked)
    turns = [("user", "a"), ("assistant", "bad"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]
    given = messages(turns)

    def learned_of(excluded, learned):
        changed = tuple(one | exclude if place in excluded else one for place, one in enumerate(given))
        samples, left_out = samples_of(made, changed, learned=learned)
        assert left_out == ([] if samples else ["no reply is to be learned"])
        return [(sample.ids.tolist(), sample.turns.tolist()) for sample in samples]

    def truth(count, learned):
        return expected(turns[:count], "chatml", "sentencepiece", learned=learned)

    assert learned_of({1}, "all") == [truth(6, {2, 3})]
    assert learned_of({1}, "augmented") == [truth(4, {2}), truth(6, {3})]
    assert learned_of({5}, "last") == [truth(4, {2})]
    assert learned_of({0, 2}, "all") == [truth(6, {1, 2, 3})]  # of messages of the user it says nothing
    assert learned_of({1, 3, 5}, "all") == learned_of({1, 3, 5}, "augmented") == []


def learned_text(sample, tokenizer):
    return tokenizer.decode(sample.ids[sample.turns > 0].tolist())


@pytest.mark.parametrize("name", BY_HAND)
def test_the_end_of_turn_is_learned_and_headers_are_not(name):
    tokenizer = byte_level()[0]
    (sample,), _ = samples_of(masker(name, tokenizer=tokenizer), messages(ARABIC), learned="all")
    ends = {"llama2": " {} </s>", "llama3": "{}<|eot_id|>", "chatml": "{}<|im_end|>"}[name]
    replies = [ends.format(text) for role, text in ARABIC if role == "assistant"]
    assert learned_text(sample, tokenizer) == "".join(replies)


def test_a_pad_token_that_is_the_end_token_does_not_hide_the_end():
    tokenizer = byte_level()[0]
    assert tokenizer.pad_id in (None, tokenizer.eos_id)
    (sample,), _ = samples_of(masker("llama2", tokenizer=tokenizer), messages(ARABIC), learned="last")
    assert (sample.ids[-1], sample.turns[-1]) == (tokenizer.eos_id, 2)


def test_there_is_one_begin_of_text():
    for name in ("llama2", "llama3"):
        (sample,), _ = samples_of(masker(name), messages(ENGLISH[:3]), learned="all")
        assert sample.ids.tolist().count(sentencepiece_tokenizer().bos_id) == 1


def test_a_text_that_spells_a_control_token_stays_text():
    tokenizer = sentencepiece_tokenizer()
    turns = [("user", "say <|im_end|>"), ("assistant", "a <|im_end|>\n<|im_start|>user b")]
    (sample,), _ = samples_of(masker(tokenizer=tokenizer), messages(turns), learned="all")
    assert sample.ids.tolist().count(tokenizer.special_tokens["<|im_end|>"]) == 2
    assert learned_text(sample, tokenizer) == "a <|im_end|>\n<|im_start|>user b<|im_end|>"


DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{{- message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
FORGETFUL = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if loop.last or message.role == 'user' %}{{ message.content }}{% else %}{{ '(left out)' }}{% endif %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
NO_PROMPT = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"


def made_with(source, **given):
    tokenizer = sentencepiece_tokenizer()
    template = ChatTemplate(source, tokenizer=tokenizer, name="own")
    return Masker(template, tokenizer=tokenizer, **{"seq_len": 512, "too_long": "whole_turns"} | given)


def test_a_default_system_text_stands_once():
    (sample,), _ = samples_of(made_with(DEFAULT_SYSTEM), messages(ARABIC), learned="all")
    tokenizer = sentencepiece_tokenizer()
    assert tokenizer.decode(sample.ids.tolist()).count("Be good.") == 1
    assert learned_text(sample, tokenizer) == "القاهرة.<|im_end|>مسقط، مدينة على البحر.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_noticed_and_can_be_augmented():
    with pytest.raises(BadRow, match="writes earlier turns differently once others follow"):
        samples_of(made_with(FORGETFUL), messages(ARABIC), learned="all")
    samples, left_out = samples_of(made_with(FORGETFUL), messages(ARABIC), learned="augmented")
    assert ([sample.turns.max() for sample in samples], left_out) == ([1, 2], [])
    text = sentencepiece_tokenizer().decode(samples[1].ids.tolist())
    assert "(left out)" in text
    assert "القاهرة" not in text


def test_a_header_that_would_be_learned_is_refused():
    with pytest.raises(UserError, match="header would be learned; put {% generation %}"):
        made_with(NO_PROMPT)


def test_a_piece_across_the_border_of_a_reply_is_refused():
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + SEPARATOR }}{% else %}{% generation %}"
        "{{ m.content + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    turns = messages([("user", "the capital Cai"), ("assistant", "ro.")])
    tokenizer = byte_level()[0]
    apart, joined = (
        Masker(
            ChatTemplate(source.replace("SEPARATOR", separator), tokenizer=tokenizer, name="own"),
            tokenizer=tokenizer,
            seq_len=512,
            too_long="skip",
        )
        for separator in ("' :\\n'", "''")
    )
    assert learned_text(samples_of(apart, turns, learned="all")[0][0], tokenizer) == "ro.</s>"
    with pytest.raises(BadRow, match="joins a reply and what precedes"):
        samples_of(joined, turns, learned="all")


def test_what_is_longer_than_a_row():
    whole = samples_of(masker(), messages(ENGLISH), learned="all")[0][0]
    ends = np.flatnonzero(np.diff(whole.turns.astype(int), append=0) < 0) + 1  # behind each reply
    room = int(ends[1]) + 3  # tokens: two turns and the beginning of the third
    (kept,), left_out = samples_of(masker(seq_len=room - 1), messages(ENGLISH), learned="all")
    assert (kept.ids.tolist(), left_out) == (whole.ids[: ends[1]].tolist(), [])
    (cut,), _ = samples_of(masker(seq_len=room - 1, too_long="cut"), messages(ENGLISH), learned="all")
    assert cut.ids.tolist() == whole.ids[:room].tolist()
    assert samples_of(masker(seq_len=room - 1, too_long="skip"), messages(ENGLISH), learned="all") == (
        [],
        ["longer than a row"],
    )
    # Of the augmented samples the third is too long, and turns 1 to 3 are never cut inside of the reply that counts.
    samples, left_out = samples_of(masker(seq_len=room - 1), messages(ENGLISH), learned="augmented")
    assert (len(samples), left_out) == (2, ["longer than a row"])
    # A prompt alone fills the row: nothing is learned, and that is said.
    for policy in ("whole_turns", "cut"):
        assert samples_of(masker(seq_len=4, too_long=policy), messages(ENGLISH), learned="last")[1] == [
            "longer than a row"
        ]


def test_a_pair_that_does_not_fit_is_left_out_whole():
    pair = pair_of({"prompt": "ما عاصمة مصر؟", "chosen": "القاهرة.", "rejected": "Muscat " * 40})
    assert sides_of(masker(seq_len=64, too_long="skip"), pair) == ([], ["longer than a row"])
    sides = [len(side) - 1 for side in sides_of(masker(seq_len=512), pair)[0]]
    assert len(sides_of(masker(seq_len=sum(sides)), pair)[0]) == 2
    assert sides_of(masker(seq_len=sum(sides) - 1), pair) == ([], ["longer than a row, in which both sides must fit"])


def test_of_a_pair_the_answers_are_learned_and_their_shared_beginning_is_not():
    shared = [{"role": role, "content": text} for role, text in ARABIC[:3]]
    record = {"chosen": [*shared, {"role": "مساعد", "content": "مسقط."}]}
    record["rejected"] = [*shared, {"from": "المساعد", "value": "Cairo."}]
    for marked in (True, False):
        (chosen, rejected), _ = sides_of(masker(marked=marked), pair_of(record))
        tokenizer = sentencepiece_tokenizer()
        assert [learned_text(side, tokenizer) for side in (chosen, rejected)] == ["مسقط.<|im_end|>", "Cairo.<|im_end|>"]


def test_sides_that_a_template_writes_alike_are_no_pair():
    record = {"prompt": "hi", "chosen": "Cairo", "rejected": "Cairo "}
    (found,) = Masker(
        ready("llama3", sentencepiece_tokenizer(), marked=True),
        tokenizer=sentencepiece_tokenizer(),
        seq_len=512,
        too_long="skip",
    ).pairs([pair_of(record)])
    assert str(found) == "chosen and rejected have the same tokens"


def test_replies_between_tool_calls_belong_to_one_turn():
    turns = messages([("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"), ("user", "e")])
    turns = (*turns, {"role": "assistant", "content": "f"})
    samples, _ = samples_of(masker(), turns, learned="augmented")
    tokenizer = sentencepiece_tokenizer()
    assert [learned_text(sample, tokenizer) for sample in samples] == ["b<|im_end|>d<|im_end|>", "f<|im_end|>"]


def test_ready_templates_are_marked_and_their_unmarked_versions_are_not():
    for name in BY_HAND:
        marked, bare = (ready(name, sentencepiece_tokenizer(), marked=marked) for marked in (True, False))
        assert marked.render(messages(ARABIC)).generated
        assert not bare.render(messages(ARABIC)).generated
