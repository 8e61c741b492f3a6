"""What the server answers to clients that are not ours, openai's own and curl; its values are those of the engine."""

import json
import subprocess

import openai
import pytest
from small_server import make_engine

from allam_jax.generation.openai_answers import Writer
from allam_jax.generation.openai_api import read_request
from allam_jax.generation.requests import Delta, Request, Sampling, TokenLogprob

MODEL = "small/model"
MESSAGES = [{"role": "system", "content": "كن مفيدا"}, {"role": "user", "content": "the cat <|im_end|>?"}]


@pytest.fixture(scope="module")
def expected(tokenizer):
    """The completions of an engine of its own for prompt ids and the keys of Sampling."""
    alone = make_engine(tokenizer)
    return lambda ids, **given: list(alone.complete([Request("x", tuple(ids), Sampling(**given))]))


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")


def test_completions_are_those_of_the_engine(client, expected, tokenizer):
    prompts = ["the cat", "قال رسول"]
    given = {"max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 3, "presence_penalty": 0.5}
    found = client.completions.create(model=MODEL, prompt=prompts, extra_body={"top_k": 40}, **given)
    asked = {"max_new_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 7, "samples": 3}
    asked |= {"presence_penalty": 0.5, "top_k": 40}
    ids = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
    theirs = [one for some in ids for one in expected(some, **asked)]
    assert [choice.text for choice in found.choices] == [one.text for one in theirs]
    assert [choice.finish_reason for choice in found.choices] == [one.finish_reason for one in theirs]
    assert [choice.index for choice in found.choices] == list(range(6))
    assert found.usage.completion_tokens == sum(len(one.ids) for one in theirs)
    assert found.usage.prompt_tokens == sum(map(len, ids))
    by_ids = client.completions.create(model=MODEL, prompt=ids, extra_body={"top_k": 40}, **given)
    assert [choice.text for choice in by_ids.choices] == [one.text for one in theirs]


def test_streams_join_to_the_same_texts(client):
    given = {"model": MODEL, "prompt": ["the cat", "قال"], "max_tokens": 30, "temperature": 1.0, "seed": 3, "n": 2}
    whole = client.completions.create(**given)
    texts, reasons, usage = {}, {}, None
    for chunk in client.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_echo_and_logprobs(client, expected, tokenizer):
    prompt = "the cat sat"
    ids = tokenizer.encode(prompt, bos=True)
    found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, temperature=0, echo=True, logprobs=3)
    (one,) = expected(ids, max_new_tokens=5, temperature=0.0, logprobs=3, echo=True)
    (choice,) = found.choices
    assert choice.text == prompt + one.text
    got = choice.logprobs
    assert got.token_logprobs[0] is None
    assert got.top_logprobs[0] is None
    truth = [*one.prompt_logprobs[1:], *one.logprobs]
    assert got.token_logprobs[1:] == pytest.approx([token.logprob for token in truth])
    assert len(got.tokens) == len(ids) + len(one.ids)
    assert "".join(got.tokens[1 : len(ids)]) == f" {prompt}"  # behind <s>, with SentencePiece's space
    for token, top in zip(truth, got.top_logprobs[1:], strict=True):
        assert max(top.values()) == pytest.approx(token.top[0][1])
    scored = client.completions.create(model=MODEL, prompt=[ids], max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx([t.logprob for t in one.prompt_logprobs[1:]])


@pytest.mark.parametrize("prompt", ["the cat sat", "قال 😀😀 é رسول", "x\n\n  汉字 f(1)", "</s> the"])
@pytest.mark.parametrize("echo", [True, False])
def test_text_offsets_are_places_in_the_text(client, tokenizer, prompt, echo):
    ids = tokenizer.encode(prompt, bos=True)
    given = {"model": MODEL, "prompt": prompt, "max_tokens": 40, "temperature": 1.0, "seed": 1, "echo": echo}
    choice = client.completions.create(**given, logprobs=1).choices[0]
    got, begin = choice.logprobs, len(prompt) if echo else 0
    if echo:  # the characters that are whole before each token of the prompt
        before = [tokenizer.decode(ids[:number], skip_special=True).rstrip("\ufffd") for number in range(len(ids))]
        assert got.text_offset[: len(ids)] == list(map(len, before))
        assert got.text_offset[len(ids)] == begin
    assert got.text_offset == sorted(got.text_offset)
    assert begin <= got.text_offset[-1] <= len(choice.text)
    for number, (token, at) in enumerate(zip(got.tokens, got.text_offset, strict=True)):
        if not token.startswith("bytes:") and token not in tokenizer.special_tokens:
            token = token.lstrip() if echo and number == 1 else token
            assert choice.text[at:].startswith(token), (number, token, at)
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**given, logprobs=1, stream=True)]
    assert [at for chunk in chunks for at in chunk.text_offset] == got.text_offset


def test_text_offsets_end_with_a_text_that_is_stopped(client):
    given = {"model": MODEL, "prompt": "the", "max_tokens": 40, "temperature": 1.0, "seed": 5, "logprobs": 0}
    free = client.completions.create(**given).choices[0].text
    choice = client.completions.create(**given, stop=free[5:12]).choices[0]
    assert choice.text == free[: free.index(free[5:12])]
    assert max(choice.logprobs.text_offset) <= len(choice.text)


def test_stop_texts_and_seeds(client):
    given = {"model": MODEL, "prompt": "the", "max_tokens": 40, "temperature": 1.0}
    free = client.completions.create(**given, seed=5).choices[0].text
    stop = free[5:8]
    stopped = client.completions.create(**given, seed=5, stop=[stop, "never there"]).choices[0]
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"
    assert client.completions.create(**given, seed=6).choices[0].text != free
    unseeded = {client.completions.create(**given).choices[0].text for _ in range(3)}
    assert len(unseeded) == 3


def test_chat(client, served, expected):
    ids = served.model.template.prompt_ids(MESSAGES)
    given = {"model": MODEL, "messages": MESSAGES, "temperature": 0.9, "seed": 4, "max_completion_tokens": 24}
    (one,) = expected(ids, max_new_tokens=24, temperature=0.9, seed=4, logprobs=2)
    found = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
    (choice,) = found.choices
    assert choice.message.content == one.text
    assert choice.message.role == "assistant"
    assert [token.logprob for token in choice.logprobs.content] == pytest.approx([t.logprob for t in one.logprobs])
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    tokens = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert tokens.decode(errors="replace").strip("\ufffd ") == one.text.strip("\ufffd ")
    text, roles = "", []
    for chunk in client.chat.completions.create(**given, stream=True):
        roles += [chunk.choices[0].delta.role] if chunk.choices[0].delta.role else []
        text += chunk.choices[0].delta.content or ""
    assert text == one.text
    assert roles == ["assistant"]
    parts = [{"type": "text", "text": MESSAGES[1]["content"][:4]}, {"type": "text", "text": MESSAGES[1]["content"][4:]}]
    given["messages"] = [MESSAGES[0], {"role": "user", "content": parts}]
    assert client.chat.completions.create(**given).choices[0].message.content == one.text


def test_curl(served):
    body = json.dumps({"prompt": "قال", "max_tokens": 8, "temperature": 0, "stream": True})
    command = ["curl", "-sN", f"{served.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    events = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    plain = served.client().post("/v1/completions", content=body.replace("true", "false")).json()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == plain["choices"][0]["text"]


@pytest.mark.parametrize("chat", [True, False])
def test_log_probabilities_of_ids_that_the_tokenizer_has_not(served, tokenizer, chat):
    """A model may have more rows than its tokenizer: such an id is a token without text."""
    spare = TokenLogprob(tokenizer.vocab_size + 3, -0.5, ((tokenizer.vocab_size + 3, -0.5), (5, -2.0)))
    body = {"messages": MESSAGES, "logprobs": True} if chat else {"prompt": "x", "logprobs": 2}
    asked = read_request(body, chat=chat, model=served.model)
    delta = Delta("x", 0, (spare.token_id,), "", (spare,), "length")
    logprobs = Writer(asked, model=served.model).whole({0: [delta]})["choices"][0]["logprobs"]
    if chat:
        assert logprobs["content"][0]["token"] == ""
        assert [one["logprob"] for one in logprobs["content"][0]["top_logprobs"]] == [-0.5, -2.0]
    else:
        assert (logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"]) == ([""], [-0.5], [0])
        assert logprobs["top_logprobs"][0][""] == -0.5
