"""Compile the Triton kernels for a Hopper GPU without one, and show what they take.

`python -m moeplan.profile.aot` prints registers, spilled bytes and shared memory of each variant of
each kernel in bf16 (with `--first` of one variant each), and exits with 1 where one spills. It
needs triton and the tools in its wheel, no GPU and no torch built for CUDA.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moeplan.profile import kernels

__all__ = ["Usage", "compile_all", "main"]

TARGET = GPUTarget("cuda", 90, 32)
_POINTERS = {"weight_ptr": "*fp32", "place_ptr": "*i64", "expert_ptr": "*i16", "ends_ptr": "*i32"}
_BLOCKS = {"BLOCK_R": 4, "BLOCK_C": 1024}
_WEIGHTED = ({"WEIGHTED": True, "K": 8}, {"WEIGHTED": False, "K": 8})
_ACTIVATIONS: tuple[Mapping[str, Any], ...] = (
    *(
        {"CURVE": curve, "GATED": gated, "CLAMPED": False}
        for curve in kernels._CURVES.values()
        for gated in (True, False)
    ),
    {"CURVE": 0, "GATED": True, "CLAMPED": True},
)

# kernel -> (constants of each variant, pointers whose type is not bf16)
VARIANTS: dict[str, tuple[tuple[Mapping[str, Any], ...], Mapping[str, str]]] = {
    "activate_kernel": (_ACTIVATIONS, {}),
    "activate_gradient_kernel": (_ACTIVATIONS, {}),
    "scatter_rows_kernel": (_WEIGHTED, {}),
    "gather_sum_kernel": (_WEIGHTED, {}),
    "row_dots_kernel": (({"K": 8},), {"out_ptr": "*fp32"}),
    "add_bias_kernel": (({},), {}),
    "sum_bias_kernel": (({"BLOCK_R": 32, "BLOCK_C": 64},), {"out_ptr": "*fp32"}),
}


class Usage(NamedTuple):
    """What one compiled variant of a kernel takes, per thread and per program."""

    kernel: str
    constants: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def _source(kernel: Any, constants: Mapping[str, Any], pointers: Mapping[str, str]) -> ASTSource:
    """The kernel's source with the types it is launched with; pointers and widths divide by 16."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = pointers.get(name, _POINTERS.get(name, "*bf16"))
        else:
            signature[name] = "fp32" if name in ("slope", "limit", "shift") else "i32"
        if signature[name] != "fp32" and name != "rows":
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and its bytes of stack and local memory, which is where spills go."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        said = subprocess.run(
            [tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def compile_all(*, first: bool = False) -> Iterator[Usage]:
    """Compile every variant, or each kernel's first, for sm_90, one after the other."""
    for name, (variants, pointers) in VARIANTS.items():
        kernel = getattr(kernels, name)
        for own in variants[:1] if first else variants:
            blocks = {block: size for block, size in _BLOCKS.items() if block in kernel.arg_names}
            constants = {**blocks, **own}
            compiled = triton.compile(_source(kernel, constants, pointers), target=TARGET)
            registers, spilled = _resources(compiled.asm["cubin"])
            shown = " ".join(f"{key}={int(value)}" for key, value in constants.items())
            yield Usage(name, shown, registers, spilled, compiled.metadata.shared)


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table; 1 where a kernel spills."""
    row = "{:25} {:55} {:>9} {:>7} {:>6}"
    print(row.format("kernel", "constants", "registers", "spilled", "shared"))
    spilled = 0
    for usage in compile_all(first="--first" in arguments):
        print(row.format(*usage), flush=True)
        spilled += usage.spilled_bytes
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
