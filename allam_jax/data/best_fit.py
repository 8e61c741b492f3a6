"""Which items share a row: best fit on items in the order of their lengths, none of which is cut.

The longest item comes first, and each goes into the fullest row that has room for it (best-fit decreasing; Ding et al.
2024, 2404.10830). The number of rows depends on the lengths alone. Items of one length may take each other's places: so
every epoch has other neighbours, and as many rows.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one epoch: row r holds the items `items[starts[r] : starts[r + 1]]`."""

    items: np.ndarray  # [items]
    starts: np.ndarray  # [rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.items[self.starts[row] : self.starts[row + 1]]


class BestFit:
    """Packs items of given lengths into rows of a capacity; `rows(rng)` are those of one epoch."""

    def __init__(self, lengths: np.ndarray, *, capacity: int, packed: bool = True):
        """`lengths` [items] are at most `capacity`; without `packed` every item has a row of its own."""
        self._lengths = np.asarray(lengths)
        falling = np.sort(self._lengths)[::-1]
        self._row_of = _best_fit(falling.tolist(), capacity) if packed else np.arange(len(falling))
        counts = np.bincount(self._row_of)
        self.count = len(counts)
        self.most_items = int(counts.max(initial=0))
        self._ends = np.concatenate([[0], np.cumsum(counts)])
        self._by_row = np.argsort(self._row_of, kind="stable")  # places in the falling order

    def rows(self, rng: np.random.Generator) -> Rows:
        """The rows in a random order, with a random choice among items of one length."""
        shuffled = rng.permutation(len(self._lengths))
        falling = shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]
        items, order = falling[self._by_row], rng.permutation(self.count)
        sizes = np.diff(self._ends)[order]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.repeat(self._ends[order] - starts[:-1], sizes) + np.arange(len(items))
        return Rows(items=items[places], starts=starts)


def _best_fit(falling: list[int], capacity: int) -> np.ndarray:
    """The row of each item. Bit c of `open_rows` says that some row has room for exactly c more."""
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rows, rows = 0, 0
    row_of = np.empty(len(falling), np.int64)
    for place, length in enumerate(falling):
        if enough := open_rows >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                open_rows ^= 1 << room
        else:
            room, row, rows = capacity, rows, rows + 1
        row_of[place] = row
        with_room[room - length].append(row)
        open_rows |= 1 << (room - length)
    return row_of
