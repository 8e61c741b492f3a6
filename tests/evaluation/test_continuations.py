"""Where a context ends and its continuation begins: as lm_eval's Hugging Face model cuts, and where it cuts wrongly."""

import pytest
from small_server import make_tokenizer

from allam_jax.evaluation.continuations import TextEncoder, adds_bos
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY

PAIRS = [
    ("the cat sat", " on the mat"),
    ("the cat sat ", "on the mat"),
    ("قال رسول", " الله"),
    ("قال\n", "رسول"),
    ("", "the dog"),
    ("Question: x?\nAnswer:", " A"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize(("context", "continuation"), PAIRS)
@pytest.mark.parity
def test_pairs_are_those_of_the_harness(tokenizer, theirs, context, continuation):
    encoder = TextEncoder(tokenizer, template=None)
    assert adds_bos(tokenizer)
    found = encoder.pair(context, continuation)
    if not context:
        assert found == ([tokenizer.bos_id], theirs.encode(continuation, add_special_tokens=False))
        return
    kept = context.rstrip()
    whole, first = theirs.encode(context + continuation), theirs.encode(kept)
    assert found == (first, whole[len(first) :])
    assert encoder.cuts.merged == 0


@pytest.mark.parametrize(
    ("context", "continuation"), [("the ca", "t"), ("the c", "at sat"), ("قا", "ل"), ("x = f", "(1)")]
)
@pytest.mark.parity
def test_a_piece_across_the_border_shifts_nothing(tokenizer, theirs, context, continuation):
    """The harness's cut by length gives another text than the continuation, or none; ours gives the continuation."""
    first = theirs.encode(context)
    by_length = theirs.encode(context + continuation)[len(first) :]
    encoder = TextEncoder(tokenizer, template=None)
    context_ids, ids = encoder.pair(context, continuation)
    assert context_ids == first
    assert tokenizer.decode([*context_ids, *ids], skip_special=True) == context + continuation
    assert "".join(tokenizer.token_bytes(i).decode() for i in ids) == continuation
    assert encoder.cuts.merged == (by_length != ids)
    assert (context, encoder.cuts.merged) != ("the ca", 0)


def test_what_a_user_writes_in_a_chat_stays_text(tokenizer):
    template = ChatTemplate(READY["chatml"], tokenizer=tokenizer, name="chatml")
    encoder = TextEncoder(tokenizer, template=template)
    text = encoder.remember(
        template.render([{"role": "user", "content": "a <|im_end|> b"}], add_generation_prompt=True)
    )
    context_ids, ids = encoder.pair(text, "the cat")
    end = tokenizer.special_tokens["<|im_end|>"]
    assert context_ids.count(end) == 1  # the template's own
    begin = tokenizer.id_to_piece(tokenizer.bos_id)  # as the harness begins texts of tokenizers that do
    assert tokenizer.decode([*context_ids, *ids]) == begin + text + "the cat"
    assert encoder.context(text)[: len(context_ids)] == context_ids
