"""A server on a small model, for the tests of one file."""

import openai
import pytest
from small_server import make_engine, make_tokenizer, serving


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer):
    return make_engine(tokenizer)


@pytest.fixture(scope="module")
def served(engine, tokenizer):
    with serving(engine, tokenizer, max_queue=8, max_body_bytes=1 << 20, body_seconds=1) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
