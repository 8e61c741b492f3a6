"""The kinds of pieces in a vocabulary."""

import enum
from collections.abc import Sequence


class Kind(enum.Enum):
    """The role of an id. Plain text becomes NORMAL, USER_DEFINED and BYTE ids only."""

    NORMAL = "normal"
    UNKNOWN = "unknown"
    CONTROL = "control"  # <s>, </s>, chat tokens: never the result of plain text
    USER_DEFINED = "user_defined"  # one id wherever the string occurs, also in plain text
    BYTE = "byte"
    UNUSED = "unused"
    RETIRED = "retired"  # NORMAL in the base model, and made unreachable by the merge; its row stays

    @property
    def is_special(self) -> bool:
        """Whether the id stands for no text of its own."""
        return self in (Kind.CONTROL, Kind.UNKNOWN)


def special_tokens(pieces: Sequence[str], kinds: Sequence[Kind]) -> dict[str, int]:
    """The special tokens of a vocabulary: string -> id."""
    return {piece: index for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind.is_special}
