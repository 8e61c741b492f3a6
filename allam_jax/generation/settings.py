"""Settings of decoding and of the engine."""

from allam_jax.settings import Section, setting


class GenerateSettings(Section, name="generate"):
    """Which prompts are continued, and how."""

    prompts: tuple[str, ...] = setting((), "texts that are continued")
    max_new_tokens: int = setting(64, "tokens of a continuation", least=1)
    temperature: float = setting(
        0.0, "divides the logits before sampling; 0 takes the likeliest token", least=0, most=1e3
    )
    top_k: int = setting(0, "only the k likeliest tokens; 0: all", least=0)
    top_p: float = setting(1.0, "only the likeliest tokens of this joint probability", above=0, most=1)


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
