"""A backend of `over_rows` that asks an endpoint of moderation, in the shape of OpenAI's `/v1/moderations`.

An answer is the JSON object `{"flagged": {category: bool}, "scores": {category: number}}`. Categories such as
`hate/threatening` count to the one before the slash: flagged if one of them is, with the highest of their scores.
"""

import collections
import json
import math
from typing import Any

from allam_jax.files import json_text
from allam_jax.generation.endpoint import RowsOverHttp, UnfitAnswer
from allam_jax.generation.over_rows import Choice, RowAnswer


class ModerationBackend(RowsOverHttp):
    """Asks about texts; prompts are texts."""

    def request(self, asked: Any) -> tuple[str, dict[str, Any]]:
        """See `RowsOverHttp`."""
        return "moderations", {"model": self._settings.model, "input": asked}

    def read(self, content: bytes) -> RowAnswer:
        """See `RowsOverHttp`."""
        try:
            (result,) = json.loads(content)["results"]
            flagged = _joined(result["categories"], kinds=(bool,))
            scores = _joined(result.get("category_scores") or {}, kinds=(int, float))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UnfitAnswer("no result of a moderation") from None
        return RowAnswer((Choice(json_text({"flagged": flagged, "scores": scores}), "stop", 0),))


def _joined(values: dict[str, Any], *, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Category -> the highest value of its parts. Categories without a value (null) are left out."""
    parts = collections.defaultdict[str, list[Any]](list)
    for name, value in values.items():
        if value is None:
            continue
        if type(value) not in kinds or not math.isfinite(value):
            raise TypeError
        parts[name.partition("/")[0]].append(value)
    return {name: max(found) for name, found in parts.items()}
