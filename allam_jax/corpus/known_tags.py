"""Tags that a record brings with it, so that they need not be computed."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

QUALITY_SIGNALS = "quality_signals"  # the field of a record in which RedPajama-v2 keeps its tags
PROBABILITIES = ("rps_doc_ml_palm_score", "ccnet_language_score", "language_score")


class UnreadableTagError(Exception):
    """A record's tags cannot be read; the message is the reason."""


def known_tags(record: Mapping[str, Any], tags: Sequence[str]) -> dict[str, float]:
    """The tags whose values a record brings: name -> value.

    A tag is a field of the record, or an entry of RedPajama-v2's `quality_signals`: a mapping, or JSON of a mapping,
    from name to [[start, end, value]].

    Raises UnreadableTagError for `quality_signals` that are not JSON, and for a probability outside 0..1.
    """
    signals = record.get(QUALITY_SIGNALS) or {}
    if isinstance(signals, str) and tags:
        try:
            signals = json.loads(signals)
        except (ValueError, RecursionError):
            raise UnreadableTagError(f"with {QUALITY_SIGNALS} that are not JSON") from None
    if not isinstance(signals, Mapping):
        signals = {}
    found = {}
    for tag in [tag for tag in tags if tag in record or tag in signals]:  # most records bring none
        value = record.get(tag, signals.get(tag))
        while isinstance(value, list | tuple) and value:
            value = value[-1]
        with contextlib.suppress(OverflowError):  # an integer of 400 digits
            # A record that says NaN or infinity does not know its tag.
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                found[tag] = float(value)
        if tag in PROBABILITIES and not 0 <= found.get(tag, 0.0) <= 1:
            raise UnreadableTagError(f"with {tag} outside 0..1")
    return found
