"""The tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .gpu import gpu
from .tables import (
    MINUS,
    MISSING,
    NONE,
    Block,
    Numbers,
    Report,
    Results,
    at,
    best_marked,
    conditions,
    milliseconds,
    number,
    of,
    of_all,
    ratio,
    table,
    titles,
    with_error,
)

BENCHMARKS = ("steps", "denoising", "scaling", "equal_compute", "memory", "ops")
TABLES = ("table-6", "table-21", "table-63")
PROBLEMS = ("2d", *TABLES, "small", "image")
AXES = {"num_steps": "steps N", "batch": "batch B", "width": "width"}
WAYS = {"fused": "fused", "eager": "eager torch", "compiled": "torch.compile"}
RATIOS = {"eager": "eager / fused", "compiled": "compiled / fused", "gradient": "with gradients",
          "avx2": "on AVX2", "portable": "on any processor"}  # fmt: skip


# --- steps ---------------------------------------------------------------------------------------


def steps_2d(results: Results) -> str:
    reports = [results.get(f"steps_2d_{threads}") for threads in (1, 2)]
    if not any(reports):
        return MISSING
    rows = [
        [
            title,
            *(cell(at(r, "variants", n)) for r in reports for cell in (milliseconds, ratio)),
            number(at(reports[0], "variants", n, "first_call_seconds")),
            number(at(reports[0], "variants", n, "mebibytes")),
        ]
        for n, title in titles([r for r in reports if r], "variants").items()
    ]
    head = ["", "1 thread, ms (least)", "over DDPM (quartiles)", "2 threads, ms (least)",
            "over DDPM (quartiles)", "first call, s", "memory, MiB"]  # fmt: skip
    return table(head, rows)


def steps_side_by_side(reports: list[Report]) -> str:
    """Times of variants, a pair of columns for each problem."""
    heads = [(f"{_column(r)}: over DDPM (quartiles)", "ms (least)") for r in reports]
    rows = [
        [title, *(cell(at(r, "variants", n)) for r in reports for cell in (ratio, milliseconds))]
        for n, title in titles(reports, "variants").items()
    ]
    return table(["", *(cell for pair in heads for cell in pair)], rows)


def _column(report: Report) -> str:
    """What is special about a problem."""
    problem, of_ddpm = report["problem"], report["batch_of_ddpm"]
    if problem["batch"] != of_ddpm:
        return f"{problem['batch']} trajectories, DDPM of {of_ddpm:,}"
    if problem["side"] is None:
        return f"d = {problem['dim']}"
    return f"{_sample(problem)}, B = {problem['batch']}"


def _sample(problem: Mapping[str, Any]) -> str:
    """The shape of a sample."""
    side = problem["side"]
    return str(problem["dim"]) if side is None else f"1 x {side} x {side}"


def _steps(results: Results) -> dict[str, Report]:
    """The reports of one thread by problem."""
    return {p: results[f"steps_{p}_1"] for p in PROBLEMS if f"steps_{p}_1" in results}


def sizes(results: Results) -> str:
    """What the problems are."""
    rows = [
        [name, _sample(p), f"{p['batch']:,}", str(p["num_steps"]),
         "perceptron" if p["side"] is None else "U-Net", str(p["width"]), str(p["depth"])]
        for name, report in _steps(results).items() for p in [report["problem"]]
    ]  # fmt: skip
    head = ["problem", "sample", "batch B", "steps N", "network", "width", "depth"]
    return table(head, rows) if rows else MISSING


def product_share(report: Report) -> str:
    """The rate of arithmetic of the fused engine's step."""
    share = at(report, "product_share", "median")
    if share is None:
        return MISSING
    return (
        "Over the whole 2-D step on one thread, the fused engine multiplies and adds at "
        f"{share:.0%} of the rate of `torch.mm` on large float32 matrices.\n"
    )


def gradients(results: Results) -> str:
    """How far gradients are from float64 autograd of the same loss on the same noise."""
    rows = []
    for name, report in _steps(results).items():
        errors = [
            *(report["gradient_errors"][part] for part in ("float32", "bfloat16", "other_noise")),
            report["torchsde_adjoint_gradient_error"],
        ]
        rows.append([name, *(NONE if e is None else f"{e:.1e}" for e in errors)])
    head = ["relative error", "float32", "bfloat16", "another draw of the noise, for comparison",
            "torchsde's adjoint, drift"]  # fmt: skip
    return table(head, rows) if rows else MISSING


# --- growth, memory, bounds ----------------------------------------------------------------------


def scaling(report: Report) -> str:
    rows = []
    for axis, found in report["axes"].items():
        for engine, points in found["points"].items():
            grown = found["exponents"][engine]
            ends = points[0], points[-1]
            rows.append([
                f"{AXES[axis]}, {report['titles'][engine]}",
                " to ".join(f"{point['value']:,}" for point in ends),
                *(with_error(grown[what][part]) for what in ("time", "memory")
                  for part in ("all", "last")),
                " to ".join(number(1e3 * point["seconds"]["median"]) for point in ends),
                " to ".join(number(point["mebibytes"]) for point in ends),
            ])  # fmt: skip
    head = ["grows with", "from, to", "time, exponent", "last three", "memory, exponent",
            "last three", "ms", "MiB"]  # fmt: skip
    return table(head, rows)


def memory(report: Report) -> str:
    rows = []
    for name, one in report["cases"].items():
        states, peaks = one["state_bytes"] / 2**20, one["mebibytes"]
        rows.append([
            name, number(states), number(one["saved_bytes"] / 2**20),
            f"{one['saved_state_bytes'] / one['saved_bytes']:.2%}",
            *(number(peaks.get(part)) for part in report["titles"]),
            NONE if "adjoint" not in peaks else f"{states / peaks['adjoint']:.1%}",
        ])  # fmt: skip
    head = ["MiB", "all states", "saved by the graph", "states in it",
            *(f"peak: {title}" for title in report["titles"].values()),
            "states in the adjoint's peak"]  # fmt: skip
    claim = f"The paper's share of the states: about {report['share_in_paper']:.0%}.\n"
    return table(head, rows) + "\n" + claim


def equal_compute(report: Report) -> str:
    runs = list(report["runs"].values())
    rows = [
        (
            f"{run['title']}, rate {run['rate']:g}",
            [point["nats"] for point in run["points"]],
            [with_error(p["nats"], p["error"], 3) for p in run["points"]],
        )
        for run in runs
    ]
    steps = [f"{run['points'][-1]['updates']:,}" for run in runs]
    marked = [[*cells, n] for cells, n in zip(best_marked(rows), steps, strict=True)]
    times = [f"{number(point['seconds'])} s" for point in runs[0]["points"]]
    head = [f"bound on {MINUS}log p, nats", *times, "updates"]
    text = f"The entropy of {report['data']}, which no model can go below, is "
    return table(head, marked) + f"\n{text}{report['entropy']:.3f} nats.\n"


def denoising(report: Report) -> str:
    rows = [
        [report["titles"][name], *(f"{case['parameters'][name]:,}: {ratio(case['variants'][name])}"
                                   for case in report["cases"].values())]
        for name in report["titles"]
    ]  # fmt: skip
    head = [f"{name}, batch {case['batch']}" for name, case in report["cases"].items()]
    return table(["parameters: time of an update, DDPM = 1", *head], rows)


# --- ops -------------------------------------------------------------------------------------


def ops(report: Report) -> str:
    rows = [
        [
            f"`{one['op']}`, {_shape(one)}",
            *(_microseconds(one["seconds"].get(way)) for way in WAYS),
            *(number(one["ratios"].get(name)) for name in RATIOS),
        ]
        for one in report["ops"]
    ]
    return table(["microseconds", *WAYS.values(), *RATIOS.values()], rows) + "\n" + _calls(report)


def _calls(report: Report) -> str:
    """A torch.add and the import, in words."""
    adds = [one for one in report["ops"] if "add" in one["seconds"]]
    times = [f"{_microseconds(one['seconds']['add'])} µs on {_shape(one)}" for one in adds]
    text = f"`torch.add` takes {' and '.join(times)}. " if adds else ""
    both, alone = (number(report["imports"][name]) for name in ("both", "torch"))
    return (
        f"{text}`from diffflow_ext import DiffFlowSDE` takes {both} s, of which the import of "
        f"torch takes {alone} s.\n"
    )


def _shape(one: Report) -> str:
    return " x ".join(f"{n:,}" for n in one["shape"])


def _microseconds(one: Numbers) -> str:
    return NONE if one is None else number(1e6 * one["median"])


BLOCKS: dict[str, Block] = {
    "sizes": sizes,
    "steps-2d": steps_2d,
    "product-share": of("steps_2d_1", product_share),
    "steps-tables": of_all([f"steps_{problem}_1" for problem in TABLES], steps_side_by_side),
    "steps-small": of_all(["steps_small_1"], steps_side_by_side),
    "steps-image": of_all(["steps_image_1"], steps_side_by_side),
    "gradients": gradients,
    "scaling": of("scaling_1", scaling),
    "memory": of("memory_1", memory),
    "equal-compute": of("equal_compute_1", equal_compute),
    "denoising": of("denoising_1", denoising),
    "ops": of("ops_1", ops),
    "gpu": gpu,
    "conditions": conditions(BENCHMARKS),
}
