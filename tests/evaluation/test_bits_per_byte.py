"""Bits per byte against log-probabilities of whole documents, computed in numpy and in torch."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
from generated import generate
from llama_pair import make_pair
from processes import child_environment, free_port, run_together
from small_models import TINY

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.batch import padding
from allam_jax.data.evaluation_rows import EvaluationRows, make_evaluation_rows
from allam_jax.errors import UserError
from allam_jax.evaluation.bits_per_byte import make_evaluator
from allam_jax.model.llama import init_params, param_axes
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import parameter_shardings

BOS, FIRST_BYTE = 1, 3
CONFIG = dataclasses.replace(TINY, vocab_size=FIRST_BYTE + 256, vocab_multiple=64)
OPTIONS = ComputeOptions()
SEQ_LEN = 48
SAMPLES = {"prompts": [[BOS, 70], [BOS]], "max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 4}
TEXTS = [
    "In the name of God",
    "علّم بالقلم",  # Arabic: two bytes a letter
    "x",
    "𐤀 and a clef 𝄞",  # four bytes a letter
    "a text that is longer than a row is scored window by window, each window with no context but its own " * 3,
    "صحيح مسلم، كتاب الإيمان، باب الدليل على أن من مات على التوحيد دخل الجنة قطعا",
    "z" * SEQ_LEN,  # as long as a row
    "y" * (SEQ_LEN + 1),  # one more
]


class ByteTokenizer:
    """One id for each UTF-8 byte."""

    def encode(self, text, *, bos=False, eos=False):
        assert not eos
        return [BOS] * bos + [FIRST_BYTE + byte for byte in text.encode()]


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(jax.random.key(3), config=CONFIG))()


@pytest.fixture(scope="module")
def one_device():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    documents = [Document(text=text, id=str(i), source="test", language="en") for i, text in enumerate(TEXTS)]
    directory = tmp_path_factory.mktemp("corpus") / "held_out"
    write_dataset(documents, directory=directory, name="held_out", validation_share=0.0)
    return directory


@pytest.fixture(scope="module")
def rows(dataset):
    return make_evaluation_rows(dataset, tokenizer=ByteTokenizer(), seq_len=SEQ_LEN, split="train")


def windows(text):
    """The pieces of a document that are scored, each with the token before it: what evaluation_rows.py promises."""
    ids = [BOS, *(FIRST_BYTE + byte for byte in text.encode())]
    return [ids[start : start + SEQ_LEN + 1] for start in range(0, len(ids) - 1, SEQ_LEN)]


def nats_by_numpy(params, texts):
    total = 0.0
    for text in texts:
        for ids in windows(text):
            log_probs = numpy_llama.log_softmax(numpy_llama.logits(params, ids[:-1], config=CONFIG))
            total -= log_probs[np.arange(len(ids) - 1), ids[1:]].sum()
    return total


def rows_by_hand(pieces_of_rows, *, num_bytes):
    """EvaluationRows with these pieces (lists of ids) in each row."""
    batch = padding(len(pieces_of_rows), SEQ_LEN)
    for row, pieces in enumerate(pieces_of_rows):
        column = 0
        for segment, ids in enumerate(pieces, start=1):
            place = (row, slice(column, column + len(ids) - 1))
            batch["tokens"][place], batch["targets"][place] = ids[:-1], ids[1:]
            batch["segment_ids"][place], batch["loss_weights"][place] = segment, 1
            batch["positions"][place] = np.arange(len(ids) - 1)
            column += len(ids) - 1
    tokens = int(batch["loss_weights"].sum())
    return EvaluationRows(rows=batch, documents=1, bytes=num_bytes, tokens=tokens)


def test_equals_whole_document_log_probabilities(params, rows, one_device):
    result = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=4)(params, rows)
    nats = nats_by_numpy(params, TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert result["bytes"] == num_bytes
    assert result["tokens"] == num_bytes  # of a byte tokenizer
    np.testing.assert_allclose(result["nats"], nats, rtol=1e-6)
    np.testing.assert_allclose(result["bits_per_byte"], nats / math.log(2) / num_bytes, rtol=1e-6)
    np.testing.assert_allclose(result["nats_per_token"], nats / num_bytes, rtol=1e-6)


@pytest.mark.parity
def test_equals_log_softmax_in_torch(tmp_path, rows, one_device):
    import torch

    pair = make_pair(tmp_path, vocab_size=CONFIG.vocab_size, num_key_value_heads=2, tie_word_embeddings=True)
    model = pair.torch_model
    nats = 0.0
    with torch.no_grad():
        for text in TEXTS:
            for ids in windows(text):
                log_probs = torch.log_softmax(model(torch.tensor([ids[:-1]])).logits[0].double(), dim=-1)
                nats -= log_probs[range(len(ids) - 1), ids[1:]].sum().item()
    result = make_evaluator(config=pair.config, options=OPTIONS, mesh=one_device, batch_size=4)(pair.params, rows)
    np.testing.assert_allclose(result["nats"], nats, rtol=1e-6)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(params, rows, one_device):
    blind = params | {"head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}
    result = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=4)(blind, rows)
    np.testing.assert_allclose(result["bits_per_byte"], math.log2(CONFIG.vocab_size), rtol=1e-6)


def test_packing_does_not_matter(params, one_device):
    pieces = [ids for text in TEXTS[:4] for ids in windows(text)]
    num_bytes = sum(len(text.encode()) for text in TEXTS[:4])
    assert sum(len(ids) - 1 for ids in pieces[:3]) <= SEQ_LEN
    evaluate = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=2)
    packings = [
        [[ids] for ids in pieces],
        [pieces[:3], pieces[3:]],
        [[pieces[3], pieces[2]], [pieces[1], pieces[0]]],
    ]
    results = [evaluate(params, rows_by_hand(packing, num_bytes=num_bytes)) for packing in packings]
    expected = nats_by_numpy(params, TEXTS[:4])
    np.testing.assert_allclose([result["nats"] for result in results], expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_matter(params, rows, one_device, batch_size):
    result = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=batch_size)(params, rows)
    np.testing.assert_allclose(result["nats"], nats_by_numpy(params, TEXTS), rtol=1e-6)


def test_number_of_chunks_does_not_matter(params, rows, one_device):
    evaluate = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=4, num_chunks=5)
    np.testing.assert_allclose(evaluate(params, rows)["nats"], nats_by_numpy(params, TEXTS), rtol=1e-6)


def test_only_what_has_weight_counts(params, one_device):
    ids = windows(TEXTS[0])[0]
    rows = rows_by_hand([[ids]], num_bytes=7)
    rows.rows["loss_weights"][0, 4:] = 0
    log_probs = numpy_llama.log_softmax(numpy_llama.logits(params, ids[:-1], config=CONFIG))
    result = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=1)(params, rows)
    np.testing.assert_allclose(result["nats"], -log_probs[range(4), ids[1:5]].sum(), rtol=1e-6)


def test_the_same_twice_bit_for_bit(params, rows, one_device):
    results = [
        make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=4)(params, rows) for _ in range(2)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 4), (2, 2, 2)])
def test_sharded(params, rows, sizes):
    data, fsdp, tensor = sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: math.prod(sizes)])
    shardings = parameter_shardings(param_axes(CONFIG), abstract_params=params, mesh=mesh)
    evaluate = make_evaluator(config=CONFIG, options=OPTIONS, mesh=mesh, batch_size=8)
    result = evaluate(jax.device_put(params, shardings), rows)
    np.testing.assert_allclose(result["nats"], nats_by_numpy(params, TEXTS), rtol=1e-6)


def test_compiles_once_for_each_row_length(params, rows, one_device, caplog):
    def compilations(params):
        caplog.clear()
        with jax.log_compiles():
            evaluate(params, rows)
        return sum("Compiling jit(nll)" in record.getMessage() for record in caplog.records)

    evaluate = make_evaluator(config=CONFIG, options=OPTIONS, mesh=one_device, batch_size=4)
    other_params = jax.tree.map(lambda p: p + 0.01, params)
    assert len(list(rows.batches(4))) > 1
    assert [compilations(params), compilations(other_params)] == [1, 0]


def test_a_batch_that_the_mesh_does_not_divide_is_named():
    with pytest.raises(UserError, match="batch_size = 12 is not a multiple of 8"):
        make_evaluator(config=CONFIG, options=OPTIONS, mesh=make_mesh({"data": 8}), batch_size=12)


TWO_PROCESSES = """
import json, sys
import jax, numpy as np
sys.path[:0] = {paths}
from allam_jax.parallel.distributed import initialize
initialize(coordinator="localhost:{port}", num_processes=2, process_id={process})
from allam_jax.evaluation.bits_per_byte import make_evaluator
from allam_jax.data.evaluation_rows import make_evaluation_rows
from generated import generate
from allam_jax.model.llama import abstract_params, init_params, param_axes
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import parameter_shardings
from test_bits_per_byte import CONFIG, OPTIONS, SAMPLES, SEQ_LEN, ByteTokenizer
rows = make_evaluation_rows({dataset!r}, tokenizer=ByteTokenizer(), seq_len=SEQ_LEN, split="train")
mesh = make_mesh({{"data": 1, "fsdp": 2, "tensor": 2}})  # rows and parameters are cut between the processes
shardings = parameter_shardings(param_axes(CONFIG), abstract_params=abstract_params(CONFIG), mesh=mesh)
params = jax.jit(lambda: init_params(jax.random.key(3), config=CONFIG), out_shardings=shardings)()
result = make_evaluator(config=CONFIG, options=OPTIONS, mesh=mesh, batch_size=4)(params, rows)
new = generate(params, config=CONFIG, options=OPTIONS, mesh=mesh, **SAMPLES)
print(json.dumps([result, new]))
"""


@pytest.mark.long
def test_two_processes_score_and_sample_like_one(params, dataset):
    port, here = free_port(), Path(__file__).resolve()
    paths = [str(here.parents[1]), str(here.parent)]
    commands = [["-c", TWO_PROCESSES.format(paths=paths, port=port, process=i, dataset=str(dataset))] for i in range(2)]
    ends = run_together(commands, environments=[child_environment(devices=2)] * 2)
    assert [end.status for end in ends] == [0, 0], ends
    answers = [end.result for end in ends]
    assert answers[0] == answers[1]
    np.testing.assert_allclose(answers[0][0]["nats"], nats_by_numpy(params, TEXTS), rtol=1e-6)
    assert answers[0][1] == generate(params, config=CONFIG, options=OPTIONS, **SAMPLES)
