"""What the engine cannot do is told in one line when it is asked for."""

import jax
import pytest
from small_models import TINY, init_jit

from allam_jax.errors import UserError
from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling
from allam_jax.generation.settings import EngineSettings
from allam_jax.model.llama_config import ComputeOptions


@pytest.fixture(scope="module")
def params():
    return init_jit(jax.random.key(3), config=TINY)


def made(params, **settings) -> Engine:
    return Engine(params, config=TINY, options=ComputeOptions(), settings=EngineSettings(slots=4, burst=4, **settings))


def request(name, prompt, **sampling) -> Request:
    return Request(name, tuple(prompt), Sampling(**({"max_new_tokens": 9, "temperature": 0.0} | sampling)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "prompt x: no tokens"),
        ({"prompt": [29]}, "vocabulary has 29"),
        ({"prompt": [-1]}, "vocabulary has 29"),
        ({"prompt": [1] * 120}, "exceed a slot's 128"),
        ({"stop_ids": tuple(range(17))}, "more than 16 stop ids"),
        ({"stop_texts": ("a",)}, "need a tokenizer"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1: expected 0 or more"),
        ({"max_new_tokens": 2**31}, "max_new_tokens = 2147483648: expected 0 or more, at most 2147483647"),
        ({"max_new_tokens": 3.0}, "max_new_tokens = 3.0: expected a whole number"),
        ({"seed": 1.5}, "seed = 1.5: expected a whole number"),
        ({"samples": True}, "samples = True: expected a whole number"),
        ({"logprobs": 1.0}, "logprobs = 1.0: expected a whole number"),
        ({"stop_ids": (2**31,)}, "stop_ids = .2147483648,.: expected whole numbers from 0 to 2147483647"),
        ({"banned_ids": (-1,)}, "banned_ids = .-1,.: expected whole numbers"),
        ({"banned_ids": (2.0,)}, "banned_ids = .2.0,.: expected whole numbers"),
        ({"prompt": [3.7]}, "prompt x: expected ids, which are whole numbers"),
        ({"prompt": ["a"]}, "prompt x: expected ids"),
        ({"min_new_tokens": 10}, "min_new_tokens = 10"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"seed": 2**32}, "seed = 4294967296"),
        ({"logprobs": 21}, "logprobs = 21"),
        ({"stop_texts": ("",)}, "not empty"),
    ],
)
def test_bad_requests_are_named(params, change, message):
    engine = made(params)
    with pytest.raises(UserError, match=message) as error:
        engine.submit(request("x", **({"prompt": [1]} | change)))
    assert "\n" not in str(error.value)
    assert not engine.busy


def test_two_requests_of_a_name_and_a_capacity_beyond_the_context_are_errors(params):
    engine = made(params)
    engine.submit(request("x", [1]))
    with pytest.raises(UserError, match="under way"):
        engine.submit(request("x", [2]))
    with pytest.raises(UserError, match="context is 128"):
        made(params, capacity=129)
