"""Reads the text of a compiled XLA program: computations, instructions, and the number of runs of each in one step.

The reader knows what a plan needs: shapes, operands, attributes, calls between computations, and the trip counts of
loops, which XLA writes into a loop's backend_config. A scanned layer is once in the text and runs once per layer;
`Module.runs` gives the number.
"""

import dataclasses
import math
import re

BYTES_OF = {"pred": 1, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_CALLED = re.compile(r"(calls|body|to_apply|true_computation|false_computation)=%?([^\s,)}]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"?known_trip_count"?\s*[:=]\s*\{"?n"?:"?(\d+)"?')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its element type in XLA's notation (`bf16`) and its dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The size in memory. Elements smaller than a byte count as packed."""
        return math.ceil(self.size * bits_of(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; several for a flattened tuple
    operands: tuple[str, ...]  # names
    attributes: str  # the text after the operands
    operand_text: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """The size of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that this instruction runs, without the scalar functions of reductions."""
        names = [name for key, name in _CALLED.findall(self.attributes) if key != "to_apply" or self.opcode == "call"]
        for group in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in group.split(",") if name.strip()]
        return tuple(names)

    @property
    def trip_count(self) -> int:
        """The number of times that a `while` runs its body. Raises ValueError if XLA does not state it."""
        match = _TRIP_COUNT.search(self.attributes)
        if not match:
            raise ValueError(f"loop {self.name} has no known trip count: its cost cannot be counted")
        return int(match[1])


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program, with its instructions in the order of execution."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(i for i in self.instructions.values() if i.is_root)

    @property
    def parameters(self) -> list[Instruction]:
        """The parameters in the order of their numbers."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.operand_text))

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results `instruction` takes."""
        return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program: its computations by name, and the name of the one that runs first."""

    computations: dict[str, Computation]
    entry: str

    def runs(self) -> dict[str, int]:
        """Name -> number of runs of each computation when the program runs once.

        Bodies of fusions are left out, because each is part of one instruction. All branches of a conditional count.
        """
        total: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            total[name] = total.get(name, 0) + times
            for instruction in self.computations[name].instructions.values():
                if instruction.opcode == "fusion" or not instruction.called:
                    continue
                inner = times * instruction.trip_count if instruction.opcode == "while" else times
                for called in instruction.called:
                    visit(called, inner)

        visit(self.entry, 1)
        return total


def bits_of(dtype: str) -> int:
    """The bits of one element of an XLA type: `bf16` -> 16, `f8e4m3fn` -> 8, `pred` -> 8."""
    if dtype in BYTES_OF:
        return 8 * BYTES_OF[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    if not match:
        raise ValueError(f"unknown XLA element type {dtype!r}")
    return int(match[1])


def parse_program(text: str) -> Module:
    """Parses the text from `compiled.as_text()`. Raises ValueError if it is not the text of an XLA program."""
    computations: dict[str, Computation] = {}
    entry = None
    current: dict[str, Instruction] | None = None
    name = ""
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                name, current = header[2], {}
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, current)
            current = None
        elif " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("no ENTRY computation: not the text of an XLA program")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    is_root = left.startswith("ROOT ")
    result, rest = _cut(right) if right.startswith("(") else right.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _cut("(" + rest)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        shapes=_shapes(result),
        operands=tuple(re.findall(r"%([^\s,)]+)", inside)),
        attributes=attributes,
        operand_text=inside[1:-1],
        is_root=is_root,
    )


def _cut(text: str) -> tuple[str, str]:
    """Splits the text after the parenthesis that closes the first one."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: position + 1], text[position + 1 :]
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims in _SHAPE.findall(text):
        found.append(Shape(dtype, tuple(int(d.strip(" <=")) for d in dims.split(",") if d.strip())))
    return tuple(found)
