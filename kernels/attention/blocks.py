"""Block sizes of the attention kernels, per device and shape: a table, and the rule for what the table does not name.

The table is `blocks.csv`. `python -m kernels.workshop.tune` ranks candidates and rewrites it.

What the entries of `triton` for 16 bits rest on, as long as nobody has timed them: none spills a register at T = 4096,
with or without dropout, at the head counts of Llama models. On H100, three stages: with two, the loads for the next
block start after the last matmul of this one and are waited for at once. On A100, 128 queries in `forward` and `dq`
where registers allow it: Triton then gives each warp whole rows, and probabilities go from one matmul to the next
without a trip through shared memory; in `dkv` that spills, and two programs share a multiprocessor instead. 32 bits are
multiplied without tensor cores, in small blocks that spill at most a few registers.
"""

import csv
import re
from pathlib import Path
from typing import Literal, NamedTuple, cast

Pass = Literal["forward", "dq", "dkv"]  # output; gradient of the queries; gradients of keys and values
# Products of T x T with H: scores, output; scores, d probabilities, dQ; scores, dV, d probabilities, dK.
MATMULS: dict[Pass, int] = {"forward": 2, "dq": 3, "dkv": 4}
PASSES = tuple(MATMULS)
FILE = Path(__file__).with_name("blocks.csv")
LARGEST_HEAD_DIM = 256


def pass_of(kernel: str) -> Pass | None:
    """Which pass a kernel of ours computes, by its name, such as `mosaic_attention_dq`; None for other kernels."""
    found = re.fullmatch(r"(?:mosaic_)?attention_(forward|dq|dkv)", kernel)
    return cast(Pass, found[1]) if found else None


class Blocks(NamedTuple):
    """Queries and keys in a block; warps of a program; stages of the pipeline that loads ahead of the matmuls."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


class Key(NamedTuple):
    """What an entry is for. `head_dim` is the size padded to a power of two; `generation` is "sm80" or "sm90"."""

    backend: str  # "triton" or "mosaic"
    generation: str
    bytes_per_element: int
    head_dim: int
    kernel_pass: Pass


def read_table(file: Path = FILE) -> dict[Key, Blocks]:
    """The block sizes in a CSV file: the columns are the fields of `Key` and those of `Blocks`."""
    with file.open(encoding="utf-8", newline="") as lines:
        _, *rows = csv.reader(lines)
    return {
        Key(backend, generation, int(size), int(head_dim), cast(Pass, kernel_pass)): Blocks(*map(int, sizes))
        for backend, generation, size, head_dim, kernel_pass, *sizes in rows
    }


TABLE = read_table()


def blocks_for(backend: str, generation: str, bytes_per_element: int, head_dim: int, kernel_pass: Pass) -> Blocks:
    """The entry of the table, or the nearest one that is safe.

    The arguments are those of a `Key`, but `head_dim` need not be padded. It is rounded up to a head size that the
    table has, whose blocks fit a smaller head too. A generation that the table lacks takes the newest one that is older
    ("sm100" runs the blocks of "sm90"). Raises NotImplementedError if the table has nothing to offer.
    """
    kin = [
        key
        for key in TABLE
        if key.backend == backend
        and key.kernel_pass == kernel_pass
        and key.bytes_per_element == bytes_per_element
        and key.head_dim >= head_dim
        and _number(key.generation) <= _number(generation)
    ]
    if not kin:
        raise NotImplementedError(
            f"no block sizes of {backend} for {generation}, {bytes_per_element}-byte elements and heads of {head_dim}"
        )
    return TABLE[min(kin, key=lambda key: (-_number(key.generation), key.head_dim))]


def _number(generation: str) -> int:
    return int(generation.removeprefix("sm"))
