"""Which shapes programs are compiled for: little padding against few programs."""

STEP = 64  # lengths are multiples of it
COMPILING = 1024  # tokens that take about as long as compiling one more program


def rounded(length: int) -> int:
    """A length that is compiled: a multiple of `STEP` and of a quarter of the power of two below: up to 25 % more."""
    step = max(STEP, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def rows_at_once(count: int, length: int, *, most: int) -> tuple[int, int]:
    """How many of `count` rows a batch takes, up to `most`, and its size: a power of two.

    A batch is filled up with empty rows where they cost less than a program for the rest.
    """
    count = min(count, most)
    up = 1 << (count - 1).bit_length()
    if (up - count) * length > COMPILING or up > most:
        up //= 2
    return min(count, up), up


class Shapes:
    """The shapes that one program was compiled for so far."""

    def __init__(self) -> None:
        self._known: set[tuple[int, ...]] = set()

    def fitting(self, *least: int) -> tuple[int, ...]:
        """A shape of at least these sizes, whose first two are rows and tokens.

        One that is known is taken if its padding costs less than compiling another one.
        """
        places = least[0] * least[1]
        larger = [
            known for known in self._known if all(size >= small for size, small in zip(known, least, strict=True))
        ]
        best = min(larger, key=lambda known: (known[0] * known[1], known), default=None)
        if best is None or best[0] * best[1] - places > COMPILING:
            best = least
            self._known.add(best)
        return best
