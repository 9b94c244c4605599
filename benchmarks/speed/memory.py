"""What a step's memory is made of: the states, which the paper counts, and everything else.

    python -m benchmarks.speed.memory

For the autograd graph of the loop: the bytes that autograd saves, and the share of the states in
them. For the graph, the adjoint of any networks and the fused engine: the peak of a process that
takes two steps over that of one that takes none. Writes memory_THREADS.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..common.reports import parse, parser, write_report
from .peaks import peak_mebibytes
from .problem import Pair, Problem
from .steps import PROBLEMS
from .torch_steps import loop_loss
from .variants import VARIANTS, VECTORS_ONLY

VARIANTS_HERE = ("graph", "adjoint", "fused")
#: What is measured: the problem of steps.py, and another batch where it is not the problem's.
CASES = (("2d", 2000), ("2d", 20_000), ("table-63", 256), ("image", 8))
#: The largest graph that is measured, in MiB: machines with less than twice this are common.
LARGEST = 8192.0
STEPS = 2
#: The share of the states in a step's memory that the paper states.
SHARE_IN_PAPER = 0.02


def bytes_of(storages: dict[int, int], tensor: Tensor) -> None:
    """Notes the storage of a tensor, once."""
    storage = tensor.untyped_storage()
    storages[storage.data_ptr()] = storage.nbytes()


def saved_by_autograd(problem: Problem) -> dict[str, Any]:
    """Bytes that the graph of the loop keeps, of the states among them, and of all states.

    Weights are kept too, but not for the graph's sake, and are not counted.
    """
    pair = Pair(problem)
    weights, states, saved = {}, {}, {}
    for parameter in pair.parameters():
        bytes_of(weights, parameter)
    pair.drift.register_forward_pre_hook(lambda net, inputs: bytes_of(states, inputs[1]))

    def note(tensor: Tensor) -> Tensor:
        bytes_of(saved, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loop_loss(pair)  # Keeps what was saved alive, so that no address comes twice.
    kept = {at: size for at, size in saved.items() if at not in weights}
    del loss
    return {
        "saved_bytes": sum(kept.values()),
        "saved_state_bytes": sum(size for at, size in kept.items() if at in states),
        "state_bytes": 4 * (problem.num_steps + 1) * pair.data.numel(),
    }


def case(problem: Problem, threads: int, largest: float) -> dict[str, Any]:
    """States, what the graph saves, and peaks, of one problem."""
    # What is saved is proportional to the batch, and the graph of a large one is large.
    few = replace(problem, batch=min(problem.batch, 2000))
    factor = problem.batch / few.batch
    found = {name: round(size * factor) for name, size in saved_by_autograd(few).items()}
    idle = peak_mebibytes(problem, None, threads)
    peaks, left_out = {}, {}
    for name in VARIANTS_HERE:
        if problem.side is not None and name in VECTORS_ONLY:
            left_out[name] = "it knows vectors only"
        elif name == "graph" and found["saved_bytes"] / 2**20 > largest:
            left_out[name] = f"its graph takes more than {largest:.0f} MiB"
        else:
            peaks[name] = peak_mebibytes(problem, name, threads, STEPS) - idle
    return {"problem": asdict(problem), **found, "mebibytes": peaks, "left_out": left_out}


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--largest", type=float, default=LARGEST, help="graph to measure, MiB")
    args = parse(made, words)
    torch.set_num_threads(args.threads)
    problems = {f"{name}, B = {b:,}": replace(PROBLEMS[name], batch=b) for name, b in CASES}
    cases = {name: case(one, args.threads, args.largest) for name, one in problems.items()}
    titles = {name: VARIANTS[name][1] for name in VARIANTS_HERE}
    name = f"memory_{args.threads}"
    write_report(
        args, "speed.memory", name, share_in_paper=SHARE_IN_PAPER, titles=titles, cases=cases
    )


if __name__ == "__main__":
    main()
