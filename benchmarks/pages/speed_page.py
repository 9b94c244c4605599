"""Writes the tables and pictures of docs/benchmarks.md anew from benchmarks/results alone.

    python benchmarks/pages/speed_page.py

Tables stand in docs/benchmarks.md between lines `<!-- begin NAME ... -->` and `<!-- end NAME -->`;
everything else there is prose and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from . import tables as pages
from .goals import goals
from .speed_pictures import EQUAL_COMPUTE, SCALING, STEPS, draw_pictures
from .tables import (
    DOCS,
    MISSING,
    NONE,
    Blocks,
    Cell,
    Results,
    at,
    count,
    mebibytes,
    milliseconds,
    number,
    ratio,
    table,
    with_error,
)

PAGE = DOCS / "benchmarks.md"
TABLES = ("table-6", "table-21", "table-63")
PROBLEMS = ("2d", *TABLES, "small", "image")
AXES = {"num_steps": "steps N", "batch": "batch B", "width": "width"}
WAYS = {"fused": "fused", "eager": "eager torch", "compiled": "torch.compile"}
NO_GPU = "*Nothing has been measured on a GPU yet.*\n"


def steps_of(results: Results, problem: str, threads: int = 1) -> dict[str, Any] | None:
    return results.get(f"steps_{problem}_{threads}")


def titles(reports: Sequence[Mapping[str, Any] | None]) -> dict[str, str]:
    """Names and titles of the variants that some report has, in order."""
    return {n: one["title"] for r in reports if r for n, one in r["variants"].items()}


# --- steps ---------------------------------------------------------------------------------------


def steps_2d(results: Results) -> str:
    one, two = (steps_of(results, "2d", threads) for threads in (1, 2))
    if not (one or two):
        return MISSING
    rows = [
        [
            title,
            *(
                cell(at(report, "variants", name))
                for report in (one, two)
                for cell in (milliseconds, ratio)
            ),
            number(at(one, "variants", name, "first_call_seconds")),
            number(at(one, "variants", name, "mebibytes")),
        ]
        for name, title in titles([one, two]).items()
    ]
    head = ["", "1 thread, ms (least)", "over DDPM (quartiles)", "2 threads, ms (least)",
            "over DDPM (quartiles)", "first call, s", "memory, MiB"]  # fmt: skip
    return table(head, rows)


def _side_by_side(results: Results, problems: Sequence[str], what: Callable[..., str]) -> str:
    """Times and memory of variants, a pair of columns for each problem."""
    reports = {p: r for p in problems if (r := steps_of(results, p))}
    if not reports:
        return MISSING
    head, cells = [""], []
    for name, report in reports.items():
        known = any(one["mebibytes"] is not None for one in report["variants"].values())
        titled = what(name, report)
        head += [f"{titled}: over DDPM (quartiles)", "ms (least)", *(["MiB"] if known else [])]
        shown = (ratio, milliseconds, *([mebibytes] if known else []))
        cells += [(report, cell) for cell in shown]
    rows = [
        [title, *(cell(at(report, "variants", name)) for report, cell in cells)]
        for name, title in titles(list(reports.values())).items()
    ]
    return table(head, rows)


def steps_tables(results: Results) -> str:
    return _side_by_side(results, TABLES, lambda name, r: f"d = {r['problem']['dim']}")


def steps_small(results: Results) -> str:
    def what(name: str, report: Mapping[str, Any]) -> str:
        return f"{report['problem']['batch']} trajectories, DDPM of {report['batch_of_ddpm']:,}"

    return _side_by_side(results, ("small",), what)


def steps_image(results: Results) -> str:
    def what(name: str, report: Mapping[str, Any]) -> str:
        side, batch = report["problem"]["side"], report["problem"]["batch"]
        return f"1 x {side} x {side}, B = {batch}"

    return _side_by_side(results, ("image",), what)


def sizes(results: Results) -> str:
    """What the problems are."""
    rows = []
    for name in PROBLEMS:
        report = steps_of(results, name)
        if report:
            p = report["problem"]
            net = "perceptron" if p["side"] is None else "U-Net"
            shape = str(p["dim"]) if p["side"] is None else f"1 x {p['side']} x {p['side']}"
            rows.append([name, shape, f"{p['batch']:,}", str(p["num_steps"]), net,
                         str(p["width"]), str(p["depth"])])  # fmt: skip
    head = ["problem", "sample", "batch B", "steps N", "network", "width", "depth"]
    return table(head, rows) if rows else MISSING


def gradients(results: Results) -> str:
    """How far gradients are from float64 autograd of the same loss on the same noise."""
    rows = []
    for name in PROBLEMS:
        report = steps_of(results, name)
        if report:
            found = report["gradient_errors"]
            errors = [*(found[part] for part in ("float32", "bfloat16", "other_noise")),
                      report["torchsde_adjoint_gradient_error"]]  # fmt: skip
            rows.append([name, *(NONE if e is None else f"{e:.1e}" for e in errors)])
    head = ["relative error", "float32", "bfloat16", "another draw of the noise, for comparison",
            "torchsde's adjoint, drift"]  # fmt: skip
    return table(head, rows) if rows else MISSING


def left_out(results: Results) -> str:
    """What was not measured, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, report in results.items():
        if report.get("benchmark") == "steps":
            for variant, why in report["left_out"].items():
                reasons.setdefault((variant, why), []).append(name)
    lines = [f"- `{v}` ({', '.join(names)}): {why}.\n" for (v, why), names in reasons.items()]
    return "".join(lines) or MISSING


# --- growth, memory, bounds ----------------------------------------------------------------------


def scaling(results: Results) -> str:
    report = results.get("scaling_1")
    if report is None:
        return MISSING
    rows = []
    for axis, found in report["axes"].items():
        for engine, points in found["points"].items():
            grown = found["exponents"][engine]
            first, last = points[0], points[-1]
            rows.append([
                f"{AXES[axis]}, {report['titles'][engine]}",
                f"{first['value']:,} to {last['value']:,}",
                *(with_error(grown[what][part]) for what in ("time", "memory")
                  for part in ("all", "last")),
                f"{number(1e3 * first['seconds']['median'])} to "
                f"{number(1e3 * last['seconds']['median'])}",
                f"{number(first['mebibytes'])} to {number(last['mebibytes'])}",
            ])  # fmt: skip
    head = ["grows with", "from, to", "time, exponent", "last three", "memory, exponent",
            "last three", "ms", "MiB"]  # fmt: skip
    return table(head, rows)


def memory(results: Results) -> str:
    report = results.get("memory_1")
    if report is None:
        return MISSING
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


def equal_compute(results: Results) -> str:
    report = results.get("equal_compute_1")
    if report is None:
        return MISSING
    runs = report["runs"].values()
    points = next(iter(runs))["points"]
    rows = [
        (
            f"{run['title']}, rate {run['rate']:g}",
            [point["nats"] for point in run["points"]],
            [with_error(p["nats"], p["error"], 3) for p in run["points"]],
        )
        for run in runs
    ]
    steps = [f"{run['points'][-1]['updates']:,}" for run in runs]
    marked = [[*cells, n] for cells, n in zip(pages.best_marked(rows), steps, strict=True)]
    head = ["bound on \N{MINUS SIGN}log p, nats",
            *(f"{number(point['seconds'])} s" for point in points), "updates"]  # fmt: skip
    text = f"The entropy of {report['data']}, which no model can go below, is "
    return table(head, marked) + f"\n{text}{report['entropy']:.3f} nats.\n"


# --- ops and GPU ---------------------------------------------------------------------------------


def ops(results: Results) -> str:
    report = results.get("ops_1")
    if report is None:
        return MISSING
    rows = [
        [
            f"`{one['op']}`, {' x '.join(f'{n:,}' for n in one['shape'])}",
            *(_microseconds(one["seconds"].get(way)) for way in WAYS),
            *(number(one["over_fused"].get(way)) for way in WAYS if way != "fused"),
        ]
        for one in report["ops"]
    ]
    head = ["microseconds", *WAYS.values(), "eager / fused", "compiled / fused"]
    return table(head, rows)


def _microseconds(one: Mapping[str, Any] | None) -> Cell:
    return NONE if one is None else number(1e6 * one["median"])


def gpu(results: Results) -> str:
    """What gpu_check.py has written on machines with a GPU."""
    reports = [r for name, r in results.items() if name.startswith("gpu-check-")]
    parts = [_gpu_report(r) for r in reports if r["device"] != "cpu" and r["speed"]]
    return "\n".join(parts) or NO_GPU


def _gpu_report(report: Mapping[str, Any]) -> str:
    speed, name = report["speed"], report["name"]
    states = [check["status"] for check in report["checks"]]
    passed = f"{states.count('passed')} checks passed, {states.count('failed')} failed"
    step = speed["step_in_two_dimensions"]
    text = (
        f"{report['gpu']['name']}, commit {(report['commit'] or 'unknown')[:7]}: {passed}; "
        f"[{name}.json](../benchmarks/results/{name}.json). A training step in two dimensions, "
        f"B = {step['batch']:,}, N = {step['num_steps']}: DDPM {number(step['ddpm_ms'])} ms, "
        f"DiffFlow {number(step['diffflow_over_ddpm'])} times that, with batched scores "
        f"{number(step['diffflow_batched_scores_over_ddpm'])} times.\n\n"
    )
    rows = [
        [
            f"{k['kernel']}, {k['state']}/{k['net']}",
            " x ".join(f"{n:,}" for n in k["rows"]),
            number(k["milliseconds"]),
            number(k["bytes_per_second"] / 1e9),
            f"{k['share_of_copy']:.0%}",
            number(k.get("eager_over_kernel")),
        ]
        for k in speed["kernels"]
    ]
    head = ["kernel, state/network", "rows", "ms", "GB/s", "of a copy's speed", "eager / kernel"]
    return text + table(head, rows)


# --- page ----------------------------------------------------------------------------------------


def picture(path: str, alt: str, reports: Sequence[str], results: Results) -> str:
    """The link to a picture, where there is something to draw it from."""
    there = any(name in results for name in reports)
    return f"![{alt}](pictures/{path})\n" if there else MISSING


def rounds(results: Results) -> str:
    """How often steps were timed."""
    found = {r["rounds"] for r in results.values() if r.get("benchmark") == "steps"}
    return f"Steps were timed in {count(min(found), 'round')} or more.\n" if found else MISSING


STEP_REPORTS = tuple(f"steps_{problem}_{threads}" for problem in PROBLEMS for threads in (1, 2))
BLOCKS: Blocks = {
    "goals": goals,
    "rounds": rounds,
    "sizes": sizes,
    "picture-steps": partial(picture, STEPS, "Time of a step by variant", STEP_REPORTS),
    "steps-2d": steps_2d,
    "steps-tables": steps_tables,
    "steps-small": steps_small,
    "steps-image": steps_image,
    "gradients": gradients,
    "left-out": left_out,
    "picture-scaling": partial(picture, SCALING, "Growth of time and memory", ("scaling_1",)),
    "scaling": scaling,
    "memory": memory,
    "picture-equal-compute": partial(
        picture, EQUAL_COMPUTE, "Bound against seconds of training", ("equal_compute_1",)
    ),
    "equal-compute": equal_compute,
    "ops": ops,
    "gpu": gpu,
    "conditions": partial(pages.conditions, page="benchmarks"),
}


def filled(page: str, results: Results) -> str:
    """Returns the page with its tables made anew."""
    return pages.filled(page, results, BLOCKS)


def main(words: Sequence[str] | None = None) -> None:
    pages.write_page(words, __doc__, PAGE, BLOCKS, draw_pictures)


if __name__ == "__main__":
    main()
