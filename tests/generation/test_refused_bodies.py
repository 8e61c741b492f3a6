"""What the server refuses: bodies that are not what the API says, other paths, hosts and origins."""

import json

import pytest

MESSAGES = [{"role": "user", "content": "the cat"}]
GOOD = {"prompt": "x", "max_tokens": 1}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe\x00", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[]", 400, "expected a JSON object"),
        ({}, 400, "prompt: expected"),
        ({"prompt": 3}, 400, "prompt: expected"),
        ({"prompt": []}, 400, "prompt: expected"),
        ({"prompt": [1, True]}, 400, "expected whole numbers"),
        ({"prompt": [10**9]}, 400, "ids from 1000000000"),
        ({"prompt": ["x", 3]}, 400, "expected whole numbers"),
        (b'{"prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"prompt": "x", "\\ud800": ["\\ud800"]}', 400, "surrogate"),
        ({"prompt": "x " * 500}, 400, "at most 192"),
        ({"prompt": "x", "max_tokens": 500}, 400, "exceed the context"),
        ({"prompt": "x", "max_tokens": 150}, 400, "at most 128 here"),
        ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens = -1: expected 0"),
        ({"messages": MESSAGES, "max_completion_tokens": -1}, 400, "max_completion_tokens = -1: expected 0"),
        ({"messages": MESSAGES, "max_completion_tokens": 500}, 400, "max_completion_tokens = 500 and"),
        (GOOD | {"min_tokens": 2}, 400, "min_tokens = 2: expected between 0 and max_tokens"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 30}, 400, "top_logprobs = 30: expected between"),
        (GOOD | {"prompt": ["x"] * 5, "n": 2}, 400, "n = 2 for each of 5 prompts: at most 8 answers"),
        (GOOD | {"prompt": ["x"] * 9}, 400, "9 prompts: at most 8"),  # as many as may wait: serve.max_queue
        (GOOD | {"max_tokens": "many"}, 400, "expected a whole number"),
        (GOOD | {"n": 10**12}, 400, "at most 8 answers"),
        (GOOD | {"n": 0}, 400, "n = 0: expected 1 or more"),
        (GOOD | {"temperature": -1}, 400, "temperature"),
        (b'{"prompt": "x", "temperature": NaN}', 400, "temperature"),
        (GOOD | {"top_p": 0}, 400, "top_p"),
        (GOOD | {"logprobs": 99}, 400, "logprobs = 99: expected"),
        (GOOD | {"stop": [1]}, 400, "stop: expected"),
        (GOOD | {"stop_token_ids": list(range(40))}, 400, "stop ids"),
        (GOOD | {"stop_token_ids": list(range(40)), "stream": True}, 400, "stop ids"),
        (GOOD | {"stream": "yes"}, 400, "true or false"),
        (GOOD | {"suffix": "y"}, 400, "suffix is not served"),
        (GOOD | {"logit_bias": {"1": 5}}, 400, "logit_bias is not served"),
        (GOOD | {"temprature": 0}, 400, "temprature is not served here; did you mean temperature"),
        (GOOD | {"ignore_eos": True}, 400, "ignore_eos is not served"),
        (GOOD | {"guided_json": {"type": "object"}}, 400, "guided_json is not served"),
        (GOOD | {"a\nkey": 1}, 400, "a key is not served"),
        ({"messages": MESSAGES, "continue_final_message": True}, 400, "continue_final_message is not served"),
        ({"messages": MESSAGES, "tool_choice": "required"}, 400, "tool_choice is not served"),
        (GOOD | {"best_of": 4}, 400, "best_of"),
        (GOOD | {"response_format": {"type": "json_object"}}, 400, "response_format"),
        (GOOD | {"model": "other"}, 404, "no model 'other'"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [{"role": "user"}]}, 400, "expected a text as content"),
        ({"messages": [{"role": 3, "content": "x"}]}, 400, "message 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only parts of type text"),
        (
            {"messages": MESSAGES, "chat_template_kwargs": {"mode": 1}},
            400,
            "template reads no variable 'mode'; there are none",
        ),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, 400, "tools is not served"),
        (b'{"prompt": "' + b"x" * (10 << 20) + b'"}', 413, "larger than"),
    ],
)
def test_bad_requests_have_the_right_status(served, body, status, said):
    path = "/v1/chat/completions" if isinstance(body, dict) and "messages" in body else "/v1/completions"
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = served.client().post(path, content=content)
    error = response.json()["error"]
    assert (response.status_code, said in error["message"]) == (status, True), error
    assert "\n" not in error["message"]
    assert error["param"] in (None, "prompt", "messages", "a key") or error["param"] in str(body)


def test_what_changes_nothing_is_taken(served):
    unused = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "tools": [],
        "guided_json": None,
    }
    unused |= {"tool_choice": "auto", "ignore_eos": False, "temprature": None, "suffix": ""}
    assert served.client().post("/v1/completions", json=GOOD | unused).status_code == 200


def test_a_fault_of_ours_has_the_form_of_the_api(served, monkeypatch):
    monkeypatch.setattr("allam_jax.generation.server.read_request", lambda *_, **__: 1 / 0)
    response = served.client().post("/v1/completions", json=GOOD)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")


def test_other_paths_and_methods(served):
    client = served.client()
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/nothing").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    for host in ("evil.example", "[", "localhost@evil.example", "localhost.evil.example", ""):
        assert client.get("/", headers={"Host": host}).status_code in (400, 403), host
    for origin in ("https://evil.example", "null"):  # a frame in a sandbox has none
        assert client.post("/v1/completions", json=GOOD, headers={"Origin": origin}).status_code == 403
    assert client.post("/v1/completions", json=GOOD, headers={"Origin": served.url}).status_code == 200
