"""Settings of decoding."""

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
