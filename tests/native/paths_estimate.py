"""What a loss with its gradients should take on an H100: arithmetic on the kernels' machine code.

    python tests/native/paths_estimate.py [CSRC] [--earlier]

An estimate, not a measurement: instructions are counted in the SASS that nvcc makes of
paths_parts.cu, everything else follows from the figures below. Two networks of width 128 with
three hidden layers on states of 2 components, a batch of 2,000, 30 steps, in a CUDA graph.
CSRC is another tree of sources; --earlier adds what kernels waited for before fc45141's successors
drew noise ahead, computed activations next to one another and read far memory at once.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import tempfile
from pathlib import Path

import sass

ROOT = Path(__file__).resolve().parents[2]
FORMS = {"float32": "Float32Factors", "tf32": "Tf32Factors", "bfloat16": "Bfloat16Factors"}
WIDTH, DEPTH, SAMPLES, STEPS, ROWS = 128, 3, 2000, 30, 16
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
#: Microseconds: loading weights, a node of a graph, and the number of nodes beside the kernels.
LOADING, NODE, NODES = 4.0, 2.0, 34


def counts(csrc: Path) -> dict[str, list[str]]:
    """Opcodes of each part."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "parts.cubin"
        options = ["-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", "-cubin", f"-I{csrc}"]
        source = Path(__file__).with_name("paths_parts.cu")
        subprocess.run(["nvcc", *options, str(source), "-o", str(to)], check=True)
        return sass.instructions(to, "sm_90")


def part(opcodes: dict[str, list[str]], name: str, form: str = "") -> list[str]:
    """The opcodes of one part."""
    names = [kernel for kernel in opcodes if name in kernel and form in kernel]
    assert len(names) == 1, (name, form, names)
    return [op for op in opcodes[names[0]] if op != "NOP"]


def number(opcodes: dict[str, list[str]], name: str, form: str = "") -> int:
    """Instructions of a part, without those of the kernel around it."""
    return len(part(opcodes, name, form)) - len(part(opcodes, "frame"))


def product_cycles(opcodes: dict[str, list[str]], rounding: str) -> dict[str, float]:
    """Cycles of one hidden layer of a tile, by what bounds it."""
    code = part(opcodes, "product_part", FORMS[rounding])
    blocks = WIDTH // (16 if rounding == "bfloat16" else 8)
    # The code is a loop over pairs of blocks and half of it once more, for an odd number.
    mma = sum(op.startswith("HMMA") for op in code)
    loop = 2 * mma // 3
    body = [op for op in code if not re.match(r"(STG|CS2R|S2R|LDC|ULDC|EXIT)", op)]
    per_block = len(body) / 3
    operations = 2 * 16 * 8 * (16 if rounding == "bfloat16" else 8)
    rate = MMA_SHARE * PEAK[rounding] / SCHEDULERS
    return {
        "instructions": per_block * blocks * WARPS / SCHEDULERS,
        "shared memory": 8 * blocks * WARPS,
        "tensor cores": loop / 2 * blocks * WARPS / SCHEDULERS * operations / rate,
    }


def layer_cycles(opcodes: dict[str, list[str]], rounding: str, name: str, chain: float) -> float:
    """Cycles of what follows a product."""
    issue = number(opcodes, name, FORMS[rounding]) * WARPS / SCHEDULERS
    return max(issue / REACHED, chain) + BARRIER


def step_cycles(opcodes: dict[str, list[str]], rounding: str, earlier: bool) -> dict[str, float]:
    """Cycles of a tile at one time, by kernel."""
    product = max(product_cycles(opcodes, rounding).values()) / REACHED + TENSOR
    chain = (8 if earlier else 1) * CHAIN
    forward = (DEPTH + 1) * layer_cycles(opcodes, rounding, "forward_part", chain)
    backward = (DEPTH + 1) * layer_cycles(opcodes, rounding, "backward_part", BARRIER)
    ends = number(opcodes, "ends_part", FORMS[rounding]) * WARPS / SCHEDULERS + ENDS + 2 * BARRIER
    all_noise = number(opcodes, "noise_part") * WARPS / SCHEDULERS + NOISE
    noise = NOISE if earlier else all_noise / 16
    shared = DEPTH * product + ends
    return {
        "forward": shared + forward + noise + FAR / 2,
        "residuals": shared + forward + (2 if earlier else 1) * FAR,
        "score": shared + backward + (2 if earlier else 1) * FAR,
        "backward": shared + backward + (3 if earlier else 1) * FAR,
    }


def weight_products(rounding: str, trace: float) -> float:
    """Microseconds of the gradients of the weights: sums of 2,000 rows for each time."""
    operations = 2 * SAMPLES * WIDTH**2 * DEPTH * (2 * STEPS + 1)
    rate = FLOAT32_OPERATIONS if rounding == "float32" else MMA_SHARE * PEAK[rounding]
    waves = DEPTH * STEPS / MULTIPROCESSORS
    compute = operations / (rate * MULTIPROCESSORS * HERTZ * LIBRARY) * math.ceil(waves) / waves
    return 1e6 * max(compute, trace / BYTES_PER_SECOND)


def estimate(opcodes: dict[str, list[str]], rounding: str, earlier: bool) -> dict[str, float]:
    """Microseconds by kernel."""
    tiles = math.ceil(SAMPLES / ROWS)
    item = 2 if rounding == "bfloat16" else 4
    # Values and slopes of one network at all times; a kernel writes both, or reads and writes one.
    trace = 2 * item * (DEPTH + 1) * WIDTH * SAMPLES * (STEPS + 0.5)
    out = {}
    for kernel, cycles in step_cycles(opcodes, rounding, earlier).items():
        path = kernel in ("forward", "backward")
        turns = STEPS + 1 if path else math.ceil(tiles * STEPS / MULTIPROCESSORS)
        busy = turns * cycles / HERTZ
        out[kernel] = 1e6 * max(busy, trace / BYTES_PER_SECOND) + LOADING
    out["products"] = weight_products(rounding, 2 * trace)
    # Before, deltas were read once more for the gradients of biases and embeddings.
    out["sums"] = 1e6 * trace / BYTES_PER_SECOND if earlier else 0.0
    out["nodes"] = NODE * NODES
    return out


def main() -> None:
    """Prints the estimates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csrc", nargs="?", type=Path, default=ROOT / "csrc")
    parser.add_argument("--earlier", action="store_true")
    arguments = parser.parse_args()
    opcodes = counts(arguments.csrc)
    for rounding in FORMS:
        bounds = product_cycles(opcodes, rounding)
        print(f"{rounding}: a hidden layer of a tile takes at least, in cycles,")
        print("  " + ", ".join(f"{name} {cycles:.0f}" for name, cycles in bounds.items()))
        parts = estimate(opcodes, rounding, arguments.earlier)
        print("  " + ", ".join(f"{name} {time:.0f}" for name, time in parts.items()) + " us")
        print(f"  together {sum(parts.values()) / 1000:.2f} ms")


if __name__ == "__main__":
    main()
