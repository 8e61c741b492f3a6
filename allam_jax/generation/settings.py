"""Settings of decoding and of the engine."""

from allam_jax.settings import Section, nested, setting

TEMPLATE = "chat template: allam, chatml, llama2, llama3 or a .jinja file; empty: the tokenizer's"


class EndpointSettings(Section):
    """A server with OpenAI's API that answers instead of a model of ours."""

    url: str = setting("", "its address up to /v1; empty: the model at init.weights answers")
    model: str = setting("", "the model's name there")
    key_variable: str = setting("OPENAI_API_KEY", "environment variable with the key; empty: none is needed")
    concurrency: int = setting(16, "requests under way at a time", least=1, most=1024)
    requests_per_minute: float = setting(0.0, "requests a minute at most; 0: no limit", least=0)
    timeout: float = setting(300.0, "seconds until an answer must be there in full", above=0)
    attempts: int = setting(6, "times that a row is asked before it counts as an error", least=1, most=100)


class SamplingSettings(Section):
    """How tokens are chosen, and when an answer ends."""

    max_new_tokens: int = setting(64, "tokens of a continuation", least=1)
    temperature: float = setting(
        0.0, "divides the logits before sampling; 0 takes the likeliest token", least=0, most=1e3
    )
    top_k: int = setting(0, "only the k likeliest tokens; 0: all", least=0)
    top_p: float = setting(1.0, "only the likeliest tokens of this joint probability", above=0, most=1)
    min_p: float = setting(0.0, "only tokens of this share of the likeliest one's probability", least=0, most=1)
    repetition_penalty: float = setting(1.0, "makes tokens of prompt and answer less likely if above 1", above=0)
    presence_penalty: float = setting(0.0, "taken from the logits of tokens of the answer", least=-100, most=100)
    frequency_penalty: float = setting(0.0, "the same for each time that they occur", least=-100, most=100)
    stop_texts: tuple[str, ...] = setting((), "an answer ends before the first of these texts")


class GenerateSettings(SamplingSettings, name="generate"):
    """Which prompts are continued, and how."""

    prompts: tuple[str, ...] = setting((), "texts that are continued")
    input: str = setting("", "file, folder, pattern or dataset with a prompt a row, in place of prompts", path="texts")
    split: str = setting("train", "split of a dataset")
    field: str = setting("prompt", "field of a row with its prompt; a row with `messages` is a conversation")
    keep: tuple[str, ...] = setting((), "fields of a row that its answer carries, beside id")
    as_chat: bool = setting(False, "a prompt is the message of a user, which the model answers in its chat template")
    template: str = setting("", TEMPLATE, path="template")
    samples: int = setting(1, "answers to each prompt", least=1, most=1024)
    logprobs: bool = setting(False, "write the log-probability of every token too")
    shard_rows: int = setting(1000, "rows of a file of answers", least=1)
    max_error_share: float = setting(0.1, "share of rows without answer that ends the run", least=0, most=1)
    endpoint: EndpointSettings = nested(EndpointSettings, "a server that answers instead")


class ChatSettings(SamplingSettings, name="chat"):
    """A conversation in the terminal."""

    max_new_tokens: int = setting(1024, "tokens of an answer", least=1)
    temperature: float = setting(
        0.7, "divides the logits before sampling; 0 takes the likeliest token", least=0, most=1e3
    )
    system: str = setting("", "the system message; empty: none")
    template: str = setting("", TEMPLATE, path="template")


class ServeSettings(Section, name="serve"):
    """The server with OpenAI's API."""

    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0 is reachable from other machines")
    port: int = setting(8000, "port; 0: a free one", least=0, most=65535)
    name: str = setting("", "the model's name; empty: the last parts of init.weights")
    template: str = setting("", TEMPLATE, path="template")
    key_variable: str = setting("", "environment variable with the key that clients must send; empty: none")
    max_queue: int = setting(256, "requests that wait for a slot at most; more get status 429", least=1)
    max_body_bytes: int = setting(1 << 22, "size of a request at most; more gets status 413", least=1024)
    max_new_tokens: int = setting(4096, "tokens of an answer at most", least=1)
    max_samples: int = setting(128, "answers to a prompt (n), and prompts of a request, at most", least=1)
    body_seconds: float = setting(30.0, "until a request must be there in full", above=0)
    drain_seconds: float = setting(60.0, "that answers under way have to end after SIGTERM", least=0)


class EngineSettings(Section, name="engine", changes_results=False):
    """How many samples are continued at a time, and in how much memory."""

    slots: int = setting(8, "samples under way at a time", least=1)
    capacity: int = setting(0, "tokens that a slot can hold, prompt and answer; 0: the model's context", least=0)
    burst: int = setting(16, "tokens of a text between two looks at the queue", least=1)
    prefill_tokens: int = setting(1024, "prompt tokens between two bursts, at least one prompt", least=1)
    packed: bool = setting(
        False,
        "prompts share a row of up to prefill_tokens: quicker for short ones, but neighbours change a text's last bits",
    )
