"""The work of a compiled step on one GPU: the floating-point operations and memory traffic of every instruction.

The counts are those of the optimised program, with its fusions, rematerialisation and loops. An instruction reads its
operands and writes its result once. Slices of a larger array (one layer's parameters) and updates in place count the
bytes that they touch. Kernels that are opaque to XLA (attention in Pallas) count their arguments and results; their
operations are unknown here, and `planning/compiled_step.py` adds them by formula.
"""

import dataclasses
import json
import re

from allam_jax.planning.collectives import KINDS
from allam_jax.planning.hlo import Computation, Instruction, Module

# These opcodes move no data, or their data is counted at the instruction that uses it.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "domain",
    "add-dependency",
}
_SLICING = {"dynamic-slice", "slice", "gather"}
_KERNELS = ("triton", "mosaic", "pallas", "cudnn", "fmha")
_PASS_THROUGH = {"bitcast", "get-tuple-element", "reshape"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """`count` equal pieces of work on one GPU, which run one after the other."""

    kind: str  # matmul, kernel (attention) or memory
    flops: float  # of one piece; 0 for kernels
    bytes: float
    count: int
    source: str = ""  # the operation of the model that it belongs to


def work_of(module: Module) -> list[Work]:
    """All work of one step without its collectives. Equal pieces are counted together."""
    found: dict[Work, int] = {}
    for name, times in module.runs().items():
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            piece = _piece(module, computation, instruction)
            if piece is not None:
                found[piece] = found.get(piece, 0) + times
    return [dataclasses.replace(piece, count=count) for piece, count in found.items()]


def _piece(module: Module, computation: Computation, instruction: Instruction) -> Work | None:
    opcode = instruction.opcode
    base = opcode.removesuffix("-start").removesuffix("-done").removesuffix("-update")
    if opcode in _FREE or base in KINDS or base == "async" or opcode.endswith("-done"):
        return None
    flops = flops_of(module, computation, instruction)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    kind = "matmul" if flops else "memory"
    if target and any(word in target[1].lower() for word in _KERNELS):
        kind = "kernel"
    return Work(
        kind=kind,
        flops=flops,
        bytes=_bytes(module, computation, instruction),
        count=0,
        source=source[1] if source and kind == "kernel" else "",
    )


def flops_of(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Operations of the matrix products in an instruction or its fusion: 2 per multiply-add. Nothing else counts."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        return sum(flops_of(module, inner, each) for each in inner.instructions.values())
    contracted = _contracted(instruction)
    if contracted is None:
        return 0.0
    left = computation.operands(instruction)[0].shapes[0]
    inner_size = 1
    for dimension in contracted:
        inner_size *= left.dims[dimension]
    # A library's matmul returns the product first, then its scratch space.
    return 2.0 * instruction.shapes[0].size * inner_size


def _contracted(instruction: Instruction) -> list[int] | None:
    """The dimensions of the left operand that a matrix product sums over; None for any other instruction."""
    if instruction.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return [int(d) for d in match[1].split(",") if d] if match else []
    if instruction.opcode != "custom-call":
        return None
    if not re.search(r'custom_call_target="[^"]*(gemm|matmul)', instruction.attributes):
        return None
    match = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes)
    if match is None:
        raise ValueError(f"cannot read the dimensions of the matmul {instruction.name}")
    return [int(d) for d in json.loads(match[1])]


def _bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    operands = computation.operands(instruction)
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "fusion":
        return _fusion_bytes(module.computations[instruction.called[0]])
    if opcode in _SLICING:
        return 2.0 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2.0 * operands[1].bytes
    if opcode == "copy":
        return 2.0 * operands[0].bytes
    if opcode in ("broadcast", "iota"):
        return float(instruction.bytes)
    return float(instruction.bytes + sum(operand.bytes for operand in operands))


def _fusion_bytes(inner: Computation) -> float:
    users: dict[str, list[Instruction]] = {name: [] for name in inner.instructions}
    for instruction in inner.instructions.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    read = sum(_read(inner, parameter, users) for parameter in inner.parameters)
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    return float(read + sum(_written(inner, result) for result in results))


def _read(inner: Computation, value: Instruction, users: dict[str, list[Instruction]]) -> int:
    """Bytes that a fusion reads of its parameter: all of them, unless each user takes a slice or writes into it."""
    total = 0
    for user in users[value.name]:
        if user.opcode in _SLICING and user.operands[0] == value.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue
        elif user.opcode in _PASS_THROUGH:
            total += _read(inner, user, users)
        else:
            return value.bytes
    return min(total, value.bytes)


def _written(inner: Computation, result: Instruction) -> int:
    while result.opcode in _PASS_THROUGH and result.operands:
        result = inner.operands(result)[0]
    if result.opcode == "dynamic-update-slice":
        return inner.operands(result)[1].bytes
    return result.bytes
