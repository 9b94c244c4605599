"""What a loss with its gradients should take on an H100: arithmetic on the kernels' machine code.

    python tests/native/paths_estimate.py [CSRC]

An estimate, not a measurement: instructions are counted in the SASS that nvcc makes of
paths_parts.cu, everything else follows from the figures below. Two networks of width 128 with
three hidden layers on states of 2 components, a batch of 2,000, 30 steps, in a CUDA graph.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sass

ROOT = Path(__file__).resolve().parents[2]
FORMS = {"float32": "Float32Factors", "tf32": "Tf32Factors", "bfloat16": "Bfloat16Factors"}
WIDTH, DEPTH, SAMPLES, STEPS = 128, 3, 2000, 30
WARPS = WIDTH // 16

# NVIDIA H100 SXM: data sheet, and for mma.sync "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture via Microbenchmarking" (Luo et al., 2024): 62 % of the rate of wgmma.
MULTIPROCESSORS, SCHEDULERS, HERTZ = 132, 4, 1.755e9
BYTES_PER_SECOND = 0.85 * 3.35e12
PEAK = {"float32": 2048, "tf32": 2048, "bfloat16": 4096}  #: operations a cycle, with wgmma
MMA_SHARE, FLOAT32_OPERATIONS = 0.62, 256
#: Share of a bound that two warps for each scheduler reach, and of that of a library's products.
REACHED, LIBRARY = 0.8, 0.8
#: Cycles: through shared memory and a tensor core; a chain of one activation; a barrier; thin
#: layers (sums over lanes); device memory; drawing a quad of noise.
TENSOR, CHAIN, BARRIER, ENDS, FAR, NOISE = 70, 150, 40, 250, 700, 1500
#: Microseconds: loading weights, and a small node of a graph. Nodes beside the kernels and large
#: products: sums and casts, and products with the gradient of the loss.
LOADING, NODE, NODES = 4.0, 2.0, 54


@dataclass(frozen=True)
class Code:
    """The machine code of one part: its instructions, and of these those of its inner loop."""

    opcodes: list[str]
    loop: list[str]


def compile_parts(csrc: Path) -> dict[str, Code]:
    """The code of each part."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "parts.cubin"
        options = ["-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", "-cubin", f"-I{csrc}"]
        source = Path(__file__).with_name("paths_parts.cu")
        subprocess.run(["nvcc", *options, str(source), "-o", str(to)], check=True)
        tool = sass.find_tool("cuobjdump")
        listing = subprocess.run([str(tool), "-sass", to], check=True, capture_output=True)
    functions = re.split(r"Function : (\S+)", listing.stdout.decode())[1:]
    return dict(zip(functions[::2], map(read_code, functions[1::2]), strict=True))


def read_code(body: str) -> Code:
    """Reads one function of cuobjdump's listing."""
    line = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);")
    lines = [(int(at, 16), op, rest) for at, op, rest in line.findall(body) if op != "NOP"]
    loop: list[str] = []
    for at, op, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if op == "BRA" and target and int(target[1], 16) < at:
            loop = [name for place, name, _ in lines if int(target[1], 16) <= place <= at]
    return Code([op for _, op, _ in lines], loop)


def part(codes: dict[str, Code], name: str, rounding: str = "", parts: int = 1) -> Code:
    """The code of one part for tiles of `parts` times 16 rows."""
    form = f"{FORMS[rounding]}ELi{parts}" if rounding else ""
    (kernel,) = (kernel for kernel in codes if name in kernel and form in kernel)
    return codes[kernel]


def issue_cycles(codes: dict[str, Code], name: str, rounding: str, parts: int) -> float:
    """Cycles in which all warps issue a part, without what the kernel around it does."""
    own, frame = (part(codes, each, rounding, parts).opcodes for each in (name, "frame_part"))
    return (len(own) - len(frame)) * WARPS / SCHEDULERS


def product_cycles(codes: dict[str, Code], rounding: str, parts: int) -> dict[str, float]:
    """Cycles of one hidden layer of a tile, by what bounds it."""
    loop = part(codes, "product_part", rounding, parts).loop
    operations = 2 * 16 * 8 * (16 if rounding == "bfloat16" else 8)
    rate = MMA_SHARE * PEAK[rounding] / SCHEDULERS
    loads, products = (sum(op.startswith(name) for op in loop) for name in ("LDSM", "HMMA"))
    # Of each block of 8 words an iteration reads the left factor's parts and the right factor.
    turns = WIDTH // (16 if rounding == "bfloat16" else 8) * (parts + 1) / loads
    return {
        "instructions": len(loop) * turns * WARPS / SCHEDULERS,
        "shared memory": 4 * loads * turns * WARPS,
        "tensor cores": products * turns * WARPS / SCHEDULERS * operations / rate,
    }


def step_cycles(codes: dict[str, Code], rounding: str, kernel: str) -> float:
    """Cycles of a tile at one time."""
    parts = 1 if kernel in ("forward", "backward") else 2
    way = "forward_part" if kernel in ("forward", "residuals") else "backward_part"
    product = max(product_cycles(codes, rounding, parts).values()) / REACHED + TENSOR
    issue = issue_cycles(codes, way, rounding, parts) / REACHED
    layer = max(issue, CHAIN if way == "forward_part" else 0) + parts * BARRIER
    ends = issue_cycles(codes, "ends_part", rounding, parts) + ENDS + 2 * BARRIER
    far = FAR / 2 if kernel == "forward" else FAR
    # All threads draw the noise of 16 steps at a time.
    draw = len(part(codes, "noise_part").opcodes) * WARPS / SCHEDULERS + NOISE
    noise = draw / 16 if kernel == "forward" else 0.0
    return DEPTH * product + (DEPTH + 1) * layer + ends + noise + far


def weight_products(rounding: str, trace: float) -> float:
    """Seconds of the gradients of the weights: sums of rows for each time."""
    operations = 2 * SAMPLES * WIDTH**2 * DEPTH * (2 * STEPS + 1)
    rate = FLOAT32_OPERATIONS if rounding == "float32" else MMA_SHARE * PEAK[rounding]
    waves = DEPTH * STEPS / MULTIPROCESSORS
    compute = operations / (rate * MULTIPROCESSORS * HERTZ * LIBRARY) * math.ceil(waves) / waves
    return max(compute, trace / BYTES_PER_SECOND)


def estimate(codes: dict[str, Code], rounding: str) -> dict[str, float]:
    """Microseconds by kernel."""
    item = 2 if rounding == "bfloat16" else 4
    # Values and slopes of one network at all times; a kernel writes both, or reads and writes one.
    trace = 2 * item * (DEPTH + 1) * WIDTH * SAMPLES * (STEPS + 0.5)
    out = {}
    for kernel in ("forward", "residuals", "score", "backward"):
        turns = STEPS + 1
        if kernel in ("residuals", "score"):
            turns = math.ceil(math.ceil(SAMPLES / 32) * STEPS / MULTIPROCESSORS)
        busy = turns * step_cycles(codes, rounding, kernel) / HERTZ
        out[kernel] = 1e6 * max(busy, trace / BYTES_PER_SECOND) + LOADING
    out["products"] = 1e6 * weight_products(rounding, 2 * trace)
    out["other nodes"] = NODE * NODES
    return out


def main() -> None:
    """Prints the estimates."""
    codes = compile_parts(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "csrc")
    for rounding in FORMS:
        for parts in (1, 2):
            bounds = product_cycles(codes, rounding, parts)
            cycles = ", ".join(f"{name} {cycles:.0f}" for name, cycles in bounds.items())
            print(f"{rounding}, a hidden layer of {16 * parts} rows, cycles: {cycles}")
        times = estimate(codes, rounding)
        print("  " + ", ".join(f"{name} {time:.0f}" for name, time in times.items()) + " us")
        print(f"  together {sum(times.values()) / 1000:.2f} ms")


if __name__ == "__main__":
    main()
