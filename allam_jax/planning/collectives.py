"""The collectives of a compiled step: kind, mesh axes, bytes, dtype, number of runs, and whether they leave a node.

XLA writes groups of devices in three forms, and all are read: lists `{{0,1},{2,3}}`, iota `[2,4]<=[4,2]T(1,0)` and mesh
`mesh['a'=4,'b'=2] {'a'}`. The numbers are positions in the flattened mesh. A collective runs over the mesh axes along
which the members of its groups differ.
"""

import dataclasses
import math
import re

import numpy as np
from jax.sharding import Mesh

from allam_jax.planning.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((\[[^)]*\)?)\))?\s*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of traffic between GPUs; it occurs `count` times in a step."""

    kind: str
    axes: tuple[str, ...]  # the mesh axes that it runs over
    dtype: str
    payload_bytes: int  # of the whole array: after a gather, before a reduction or a scatter
    group_size: int
    ranks_per_node: int  # members of a group on one node
    count: int
    asynchronous: bool = True  # runs beside other work, which can hide some of its time

    @property
    def crosses_nodes(self) -> bool:
        """Whether it uses the network between nodes."""
        return self.ranks_per_node < self.group_size

    @property
    def wire_bytes(self) -> float:
        """Bytes that each GPU sends in one run around a ring (n - 1 of n parts, twice for an all-reduce)."""
        n = self.group_size
        if self.kind == "collective-permute":
            return self.payload_bytes
        return self.payload_bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def collectives_of(module: Module, *, mesh: Mesh, gpus_per_node: int) -> list[Collective]:
    """All collectives of a step between several devices. Equal ones are counted together; the largest traffic is first.

    Args:
        module: the compiled program of one device.
        mesh: all devices, in the order of the nodes.
        gpus_per_node: the number of consecutive devices in the flattened mesh that share a node.
    """
    counts: dict[Collective, int] = {}
    for name, times in module.runs().items():
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            groups = device_groups(instruction.attributes, kind=kind, device_count=mesh.size)
            if groups.shape[1] > 1:
                found = _describe(computation, instruction, kind, groups, mesh=mesh, gpus_per_node=gpus_per_node)
                counts[found] = counts.get(found, 0) + times
    all_found = [dataclasses.replace(collective, count=count) for collective, count in counts.items()]
    return sorted(all_found, key=lambda c: -c.wire_bytes * c.count)


def _describe(
    computation: Computation, instruction: Instruction, kind: str, groups: np.ndarray, *, mesh: Mesh, gpus_per_node: int
) -> Collective:
    shapes = [shape for operand in computation.operands(instruction) for shape in operand.shapes]
    payload = sum(shape.bytes for shape in shapes)
    size = groups.shape[1]
    nodes = groups // gpus_per_node
    return Collective(
        kind=kind,
        axes=_axes(groups, mesh=mesh),
        dtype="+".join(sorted({shape.dtype for shape in shapes})),
        payload_bytes=payload * size if kind == "all-gather" else payload,
        group_size=size,
        ranks_per_node=size // max(len(set(group)) for group in nodes.tolist()),
        count=0,
        asynchronous=instruction.opcode.endswith("-start") and '"is_sync":true' not in instruction.attributes,
    )


def _axes(groups: np.ndarray, *, mesh: Mesh) -> tuple[str, ...]:
    coordinates = np.unravel_index(groups, tuple(mesh.shape.values()))
    return tuple(axis for axis, along in zip(mesh.shape, coordinates, strict=True) if np.any(along != along[:, :1]))


def device_groups(attributes: str, *, kind: str, device_count: int) -> np.ndarray:
    """The groups of devices in a collective: an array [groups, members] of positions in the flattened mesh.

    Raises:
        ValueError: the groups are missing or written in an unknown form.
    """
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes)
        if pairs is None:
            raise ValueError(f"collective-permute without source_target_pairs: {attributes[:120]}")
        return _listed(pairs[1])
    match = re.search(r"replica_groups=(.*)", attributes)
    if match is None:
        raise ValueError(f"{kind} without replica_groups: {attributes[:120]}")
    text = match[1]
    if text.startswith("{}"):
        return np.arange(device_count)[None]
    if text.startswith("{{"):
        return _listed(text[1 : text.index("}}") + 1])
    if text.startswith("["):
        return _iota(text)
    if text.startswith("mesh"):
        return _meshed(text)
    raise ValueError(f"replica_groups in an unknown form: {text[:80]}")


def _listed(text: str) -> np.ndarray:
    return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", text)])


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(text: str) -> np.ndarray:
    match = _IOTA.match(text)
    if match is None:
        raise ValueError(f"iota device list that cannot be read: {text[:80]}")
    dims = _numbers(match[2])
    order = _numbers(match[3]) if match[3] else range(len(dims))
    return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(_numbers(match[1]))


def _meshed(text: str) -> np.ndarray:
    match = _MESH.match(text)
    if match is None:
        raise ValueError(f"mesh device list that cannot be read: {text[:120]}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    ids = np.arange(math.prod(sizes.values()))
    if match[2]:
        ids = _iota(f"[{ids.size}]<={match[2]}" if "<=" not in match[2] else match[2]).reshape(-1)
    # An axis may be used in part: 'a':(2)4 are 4 positions inside 2 outer parts. Cut it into outer, used and inner.
    dims: list[int] = []
    wanted = {name: (pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])}
    order = {name: position for position, name in enumerate(wanted)}
    grouped: list[tuple[int, int]] = []
    for name, size in sizes.items():
        if name not in wanted:
            dims.append(size)
            continue
        pre, part = (int(n) if n else default for n, default in zip(wanted[name], (1, size), strict=True))
        dims += [pre, part, size // (pre * part)]
        grouped.append((order[name], len(dims) - 2))
    used = [position for _, position in sorted(grouped)]
    rest = [position for position in range(len(dims)) if position not in used]
    members = math.prod(dims[position] for position in used)
    return ids.reshape(dims).transpose([*rest, *used]).reshape(-1, members)
