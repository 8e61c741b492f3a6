"""What a piece of a vocabulary is for."""

import enum


class Kind(enum.Enum):
    """The role of one id. Only NORMAL, USER_DEFINED and BYTE ids ever come out of plain text."""

    NORMAL = "normal"
    UNKNOWN = "unknown"
    CONTROL = "control"  # <s>, </s>, chat tokens: never written by plain text
    USER_DEFINED = "user_defined"  # always one id, also in plain text
    BYTE = "byte"
    UNUSED = "unused"
    RETIRED = "retired"  # was NORMAL in the base model; the merge made it unreachable (its row stays)

    @property
    def is_special(self) -> bool:
        """Whether the id stands for no text of its own."""
        return self in (Kind.CONTROL, Kind.UNKNOWN)
