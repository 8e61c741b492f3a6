"""Block sizes of the attention kernels, per device and shape: data, and the rule for what the data does not name.

`python -m kernels.workshop.tune` ranks candidates and rewrites the lines between the two marks below: one entry a
line, sorted, nothing else between them.

What the entries of `triton` for 16 bits rest on, as long as nobody has timed them: none spills a register at T = 4096,
with or without dropout, at the head counts of Llama models. On H100, three stages: with two, the loads for the next
block start after the last matmul of this one and are waited for at once. On A100, 128 queries in `forward` and `dq`
where registers allow it: Triton then gives each warp whole rows, and probabilities go from one matmul to the next
without a trip through shared memory; in `dkv` that spills, and two programs share a multiprocessor instead. 32 bits are
multiplied without tensor cores, in small blocks that spill at most a few registers.
"""

import re
from typing import Literal, NamedTuple, cast

Pass = Literal["forward", "dq", "dkv"]
# Products of T x T with H: scores, output; scores, d probabilities, dQ; scores, dV, d probabilities, dK.
MATMULS: dict[Pass, int] = {"forward": 2, "dq": 3, "dkv": 4}
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

    backend: str
    generation: str
    bytes_per_element: int
    head_dim: int
    kernel_pass: Pass


# fmt: off
TABLE: dict[Key, Blocks] = {
    # table begins
    Key("mosaic", "sm90", 2, 64, "dkv"): Blocks(64, 128, 12, 3),
    Key("mosaic", "sm90", 2, 64, "dq"): Blocks(128, 128, 12, 3),
    Key("mosaic", "sm90", 2, 64, "forward"): Blocks(128, 128, 12, 3),
    Key("mosaic", "sm90", 2, 128, "dkv"): Blocks(64, 128, 12, 3),
    Key("mosaic", "sm90", 2, 128, "dq"): Blocks(128, 64, 12, 3),
    Key("mosaic", "sm90", 2, 128, "forward"): Blocks(128, 64, 12, 3),
    Key("triton", "sm80", 2, 64, "dkv"): Blocks(64, 64, 4, 3),
    Key("triton", "sm80", 2, 64, "dq"): Blocks(64, 32, 4, 3),
    Key("triton", "sm80", 2, 64, "forward"): Blocks(64, 64, 4, 3),
    Key("triton", "sm80", 2, 128, "dkv"): Blocks(32, 64, 4, 2),
    Key("triton", "sm80", 2, 128, "dq"): Blocks(64, 64, 4, 2),
    Key("triton", "sm80", 2, 128, "forward"): Blocks(64, 64, 4, 2),
    Key("triton", "sm80", 2, 256, "dkv"): Blocks(32, 32, 8, 3),
    Key("triton", "sm80", 2, 256, "dq"): Blocks(32, 32, 4, 2),
    Key("triton", "sm80", 2, 256, "forward"): Blocks(32, 32, 4, 2),
    Key("triton", "sm80", 4, 64, "dkv"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 64, "dq"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 64, "forward"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 128, "dkv"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 128, "dq"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 128, "forward"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 256, "dkv"): Blocks(16, 16, 4, 2),
    Key("triton", "sm80", 4, 256, "dq"): Blocks(32, 16, 4, 2),
    Key("triton", "sm80", 4, 256, "forward"): Blocks(32, 16, 4, 2),
    Key("triton", "sm90", 2, 64, "dkv"): Blocks(32, 64, 4, 3),
    Key("triton", "sm90", 2, 64, "dq"): Blocks(128, 32, 8, 3),
    Key("triton", "sm90", 2, 64, "forward"): Blocks(128, 64, 8, 3),
    Key("triton", "sm90", 2, 128, "dkv"): Blocks(64, 128, 8, 3),
    Key("triton", "sm90", 2, 128, "dq"): Blocks(128, 128, 8, 2),
    Key("triton", "sm90", 2, 128, "forward"): Blocks(128, 64, 8, 3),
    Key("triton", "sm90", 2, 256, "dkv"): Blocks(32, 32, 8, 3),
    Key("triton", "sm90", 2, 256, "dq"): Blocks(128, 32, 8, 3),
    Key("triton", "sm90", 2, 256, "forward"): Blocks(128, 32, 8, 3),
    # table ends
}
# fmt: on


def blocks_for(backend: str, generation: str, bytes_per_element: int, head_dim: int, kernel_pass: Pass) -> Blocks:
    """The entry of the table, or the nearest one that is safe.

    The head size is rounded up to one that the table has: its blocks fit a smaller head too. A generation that the
    table lacks takes the newest one that is older ("sm100" runs the blocks of "sm90").

    Args:
        backend: "triton" or "mosaic".
        generation: "sm" and the compute capability, such as "sm80".
        bytes_per_element: of q, k and v.
        head_dim: H, not padded.
        kernel_pass: "forward", "dq" (gradient of the queries) or "dkv" (of keys and values).

    Raises:
        NotImplementedError: the table has nothing to offer; says what is missing.
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
