"""The keys of evaluations in metrics.jsonl: `eval/SUITE/NAME/METRIC`, such as `eval/held_out/ar/bits_per_byte`."""

HELD_OUT = "held_out"  # the suite of held-out documents; its names are those of `eval.sources`
SUITES = "suites"  # that of suites of questions, named as the suites and tasks


def metric_key(suite: str, name: str, metric: str) -> str:
    """The key of one number of an evaluation."""
    return f"eval/{suite}/{name}/{metric}"


def parse_metric_key(key: str) -> tuple[str, str, str] | None:
    """(suite, name, metric); None for a key that is not of an evaluation."""
    parts = key.split("/")
    return (parts[1], parts[2], parts[3]) if len(parts) == 4 and parts[0] == "eval" else None
