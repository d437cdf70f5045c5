"""The memory of a compiled program, and what its devices exchange.

Collectives are read from the program's text (HLO). A collective in the body of a loop, such as the scan over layers or
over microbatches, counts as often as the loop runs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Collective:
    """Exchanges of one kind in a step.

    Attributes:
        group: the number of devices that take part in each.
        count: the number of exchanges in a step.
        bytes: bytes of the whole array on each device, all exchanges together: a gather ends with it, a reduction
            starts with it.
        wire_bytes: bytes that each device receives, by the algorithm that moves least.
    """

    op: str
    dtype: str
    group: int
    count: int
    bytes: float
    wire_bytes: float


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, as the compiler laid them out."""

    arguments: int  # parameters, optimizer, batch
    temporaries: int  # activations, gradients, gathered weights
    results: int  # without those written over the arguments
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.results + self.code


def memory_of(compiled: Any) -> Memory:
    """The memory of a `jax.stages.Compiled`."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def out_of_memory(message: str) -> float | None:
    """Bytes that a program needs, with its arguments, from the TPU compiler's error; None for another error.

    The error reads "... the total memory required for HLO temporaries (20.06G) exceeds available HBM (15.48G)", or
    "... Used 18.21G of 15.48G hbm. Exceeded hbm capacity by 2.73G."
    """
    required = r"required for [\w ]*\(([\d.]+[KMGT]?)\) exceeds available HBM"  # arguments are counted with temporaries
    for pattern in (required, r"Used ([\d.]+[KMGT]?) of [\d.]+[KMGT]? hbm"):
        found = re.search(pattern, message)
        if found:
            return _size(found[1])
    return None


def _size(text: str) -> float:
    unit = "KMGT".find(text[-1]) + 1
    return float(text.rstrip("KMGT")) * 1024**unit


@dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, *names: str) -> list[str]:
        """The computations under those attributes."""
        found = []
        for name in names:
            for group in re.findall(rf"\b{name}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", group)
        return found


Program = dict[str, list[Instruction]]


def collectives(text: str, devices: int) -> list[Collective]:
    """The exchanges between devices in one run of a program, the largest first.

    Args:
        text: `compiled.as_text()`.
        devices: the number of devices; a collective that names no groups is between all of them.
    """
    program, entry = parse(text)
    totals: dict[tuple[str, str, int], list[float]] = {}
    seen = set()
    for instruction, computation, times, loop in _walk(program, entry, 1, entry):
        op = next((op for op in OPS if instruction.op in (op, f"{op}-start")), None)
        if op is None:
            continue
        # Overlapped with arithmetic, one collective stands in several fusions, which share its channel.
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        key = (loop, channel[1] if channel else (computation, instruction.name))
        if key in seen:
            continue
        seen.add(key)
        if "all-reduce-scatter" in computation:  # how the TPU's compiler writes a reduce-scatter
            op = "reduce-scatter"
        group = _group(instruction.attributes, devices)
        types = {one.name: one.type for one in program[computation]}
        sent = sum(type_bytes(types[operand]) for operand in instruction.operands if operand in types)
        if group == 1 or not sent:
            continue
        first = re.search(r"[a-z]\w*(?=\[)", types[instruction.operands[0]])
        total = totals.setdefault((op, first[0] if first else "?", group), [0, 0.0, 0.0])
        whole, received = _moved(op, sent, group)
        for i, amount in enumerate((1, whole, received)):
            total[i] += times * amount
    found = [
        Collective(op, dtype, group, int(count), whole, received)
        for (op, dtype, group), (count, whole, received) in totals.items()
    ]
    return sorted(found, key=lambda one: -one.wire_bytes)


def _moved(op: str, sent: float, group: int) -> tuple[float, float]:
    """(bytes of the whole array, bytes that a device receives) where each device sends so many bytes."""
    share = (group - 1) / group
    if op == "all-gather":
        return sent * group, sent * (group - 1)
    if op == "all-reduce":  # a reduce-scatter and an all-gather
        return sent, 2 * sent * share
    if op in ("reduce-scatter", "all-to-all"):
        return sent, sent * share
    return sent, sent


def _walk(program: Program, computation: str, times: int, loop: str) -> Iterator[tuple[Instruction, str, int, str]]:
    """(instruction, its computation, how often it runs, its loop body) of a computation and those that it calls."""
    for instruction in program.get(computation, ()):
        yield instruction, computation, times, loop
        if instruction.op == "while":
            (body,) = instruction.called("body")
            yield from _walk(program, body, times * trip_count(program, instruction), body)
        elif not instruction.op.endswith(("-done", "-update")):  # those name what their start has called
            for target in instruction.called("calls", "to_apply", "branch_computations"):
                yield from _walk(program, target, times, loop)


def trip_count(program: Program, loop: Instruction) -> int:
    """The number of times that a `while` runs its body: XLA's note, or the constant that its condition compares with.

    JAX's scans count from 0 in steps of 1. Raises ValueError where the condition is of another kind.
    """
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    (condition,) = loop.called("condition")
    limits = [one for one in program[condition] if one.op == "constant" and re.match(r"[su]\d+\[\]", one.type)]
    if len(limits) != 1:
        raise ValueError(f"the loop {loop.name} does not say how often it runs")
    return int(limits[0].operands[0])


def type_bytes(type_: str) -> float:
    """Bytes of an HLO type, the parts of a tuple together: "bf16[8,128]{1,0:T(8,128)}" is 2048."""
    total = 0.0
    for dtype, shape in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", type_):
        bits = BITS.get(dtype) or (8 if dtype.startswith("f8") else int(re.sub(r"\D", "", dtype) or 0))
        total += math.prod(int(size) for size in shape.split(",") if size) * bits / 8
    return total


def _group(attributes: str, devices: int) -> int:
    """The number of devices in a collective's group. Groups are lists, [groups, size]<=[...], or axes of a mesh."""
    found = re.search(r"replica_groups=(\{\{[\d,]*|\[\d+,\d+\]<=|mesh\[[^\]]*\] ?\{[^}]*\})", attributes)
    if found is None:
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes)
        return 2 if pairs else devices
    text = found[1]
    if text.startswith("{{"):
        return len(text[2:].split(","))
    if text.startswith("["):
        return int(text[1:].split(",")[1].split("]")[0])
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text)}
    named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", text[text.index("]") :])
    return math.prod(int(part) if part else sizes[name] for name, part in named)


def parse(text: str) -> tuple[Program, str]:
    """(computations by name, the name of the entry) of a module's text."""
    program: Program = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            current = program.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction is not None:
                current.append(instruction)
    if not entry:
        raise ValueError("not the text of an HLO module")
    return program, entry


def _instruction(line: str) -> Instruction | None:
    """`  ROOT %name = type op(operands), attributes`"""
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if found is None:
        return None
    rest = line[found.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    op, bracket, rest = rest.partition("(")
    if not bracket:
        return None
    end = _closing("(" + rest) - 1
    inside = rest[: end - 1]
    operands = re.findall(r"%([\w.\-]+)", inside) or ([inside] if op == "constant" else [])
    return Instruction(found[1], type_, op, tuple(operands), rest[end:])


def _closing(text: str) -> int:
    """The index behind the bracket that closes the one at 0."""
    depth = 0
    for i, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"a bracket does not close: {text[:80]}")
