"""The tables of docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .digits import table_of_digits
from .missing import filling, imputation
from .tables import (
    MINUS,
    NONE,
    Block,
    Numbers,
    Report,
    at,
    best_marked,
    conditions,
    number,
    of,
    of_all,
    table,
    titles,
    with_error,
)

BENCHMARKS = (
    "compare_2d", "compare_tables", "tables_mixed", "imputation", "compare_images", "filling",
    "digits_by_class", "diffusion_start", "dinof_sweep",
)  # fmt: skip
SETS_2D = ("2-spirals", "checkerboard", "olympic-rings", "fractal-tree", "sierpinski-carpet")
TABLES = ("magic", "hipparcos")
IMAGES = ("mnist16", "fashion-mnist16", "mnist28", "fashion-mnist28")
SWEEPS = ("2-spirals", "magic")
ESTIMATORS = {
    "bound": "bound",
    "importance_weighted": "importance-weighted bound",
    "ode": "ODE",
    "exact": "exact",
}
NATS = f"{MINUS}log p, nats"
#: What models of tables cost.
COSTS = ("updates", "CPU s", "parameters", "s per 10,000")
#: A mean this many times the median is that of a few rows.
FAR = 10.0
Reports = Sequence[Report]


# --- cells ---------------------------------------------------------------------------------------


def row_of(title: str, found: Sequence[Numbers], value: str, error: str, digits: int = 2) -> Any:
    """Returns title, values and cells of numbers that some columns may lack.

    A median is shown where a few rows have made the mean meaningless.
    """
    values = [None if one is None else one[value] for one in found]
    errors = [None if one is None else one.get(error) for one in found]
    cells = [with_error(v, e, digits) for v, e in zip(values, errors, strict=True)]
    medians = [None if one is None else one.get("median") for one in found]
    for i, (mean, median) in enumerate(zip(values, medians, strict=True)):
        if mean is not None and median is not None and mean > FAR * abs(median):
            cells[i] += f", median {with_error(median, None, digits)}"
    return title, values, cells


def spelt(name: str) -> str:
    names = {
        "magic": "MAGIC",
        "mnist": "MNIST",
        "fashion-mnist": "Fashion-MNIST",
        "hipparcos": "Hipparcos",
        "sierpinski-carpet": "Sierpinski carpet",
    }
    return names.get(name, name.replace("-", " "))


def likelihood(reports: Reports, *, name_exact: bool) -> list[Any]:
    """Rows of each model and each of its estimators, the best of a column bold."""
    return best_marked([
        row_of(f"{title}, {way}" if name_exact or way != "exact" else title,
               [at(r["models"], model, "likelihood", name) for r in reports], "nats", "error")
        for model, title in titles(reports, "models").items()
        for name, way in ESTIMATORS.items()
        if any(at(r["models"], model, "likelihood", name) for r in reports)
    ])  # fmt: skip


# --- 2-D sets ------------------------------------------------------------------------------------


def likelihood_2d(reports: Reports) -> str:
    last = ["entropy, the least there is", *(with_error(r["entropy"]) for r in reports)]
    return table([NATS, *_sets(reports)], [*likelihood(reports, name_exact=True), last])


def _sets(reports: Reports) -> list[str]:
    return [spelt(report["data"]) for report in reports]


def quality_2d(reports: Reports) -> str:
    models = titles(reports, "models")
    distance = [
        row_of(title, [_headline(at(r["models"], model)) for r in reports], "mean", "error", 1)
        for model, title in models.items()
    ]
    apart = [
        row_of(title, [at(r["models"], model, "c2st") for r in reports], "accuracy", "error", 3)
        for model, title in models.items()
    ]
    names = _sets(reports)
    return (
        table(["energy distance / real data", *names], best_marked(distance))
        + "\n"
        + table(["told apart from data (0.5 is best)", *names], best_marked(apart))
    )


def _headline(model: Numbers) -> Numbers:
    return None if model is None else model["sampling"][-1]


def cost_2d(reports: Reports) -> str:
    rows = [
        [title, *(_cost(at(r["models"], model)) for r in reports)]
        for model, title in titles(reports, "models").items()
    ]
    return table(["updates, CPU seconds of training", *_sets(reports)], rows)


def _cost(model: Numbers) -> str:
    if model is None:
        return NONE
    mark = " (cut off)" if model["cut_off"] else ""
    return f"{model['steps']:,}, {model['train_cpu_seconds']:,.0f} s{mark}"


def steps_2d(reports: Reports) -> str:
    """Quality against network evaluations: what each way to sample reaches on each set."""
    ways = {
        (model, _way(one)): title
        for model, title in titles(reports, "models").items()
        for report in reports
        for one in at(report["models"], model, "sampling") or []
    }
    rows = []
    for (model, way), title in ways.items():
        found = [_by_way(at(r["models"], model, "sampling"), way) for r in reports]
        work = max(one["evaluations"] for one in found if one)
        name, _, cells = row_of(f"{title}: {way}", found, "mean", "error", 1)
        seconds = [one["cpu_seconds_per_10000"] for one in found if one]
        rows.append([name, number(work), number(sum(seconds) / len(seconds)), *cells])
    head = ["energy distance / real data", "evaluations", "s per 10,000"]
    return table([*head, *_sets(reports)], rows)


def _way(one: Mapping[str, Any]) -> str:
    """The name of a way to sample."""
    options = one["options"]
    kind = {"ddim": "DDIM", "ancestral": "ancestral"}.get(options.get("sampler", ""), "")
    mean = "mean at the end" if options.get("last_step") == "mean" else ""
    words = [kind, "ODE" if options.get("stochasticity") == 0 else "", mean]
    steps = one["num_steps"]
    words.append("adaptive" if steps is None else f"N = {steps}")
    return ", ".join(word for word in words if word)


def _by_way(ways: Sequence[Mapping[str, Any]] | None, way: str) -> Numbers:
    return next((one for one in ways or [] if _way(one) == way), None)


# --- tables --------------------------------------------------------------------------------------


def likelihood_tables(reports: Reports) -> str:
    return table([NATS, *_sets(reports)], likelihood(reports, name_exact=False))


def quality_tables(reports: Reports) -> str:
    return "\n".join(map(_quality_table, reports))


def _quality_table(report: Report) -> str:
    rows = []
    for one in report["models"].values():
        distance, sliced, apart = one["energy_distance"], one["sliced_wasserstein"], one["c2st"]
        ratio = sliced["value"] / sliced["floor"]
        values = [distance["mean"], ratio, apart["accuracy"]]
        cells = [with_error(distance["mean"], distance["error"], 1), number(ratio),
                 with_error(apart["accuracy"], apart["error"], 3)]  # fmt: skip
        rows.append((one["title"], values, cells))
    marked = [cells + _costs(one) for cells, one in
              zip(best_marked(rows), report["models"].values(), strict=True)]  # fmt: skip
    real = report["c2st_of_training_rows"]
    marked.append(["training rows", "1", "1", with_error(real["accuracy"], real["error"], 3),
                   *[NONE] * 4])  # fmt: skip
    head = [spelt(report["data"]), "energy distance / real", "sliced W / real", "told apart"]
    return table([*head, *COSTS], marked)


def _costs(one: Report) -> list[str]:
    """The cells of `COSTS`."""
    return [
        f"{one['steps']:,}" if "steps" in one else NONE, f"{one['train_cpu_seconds']:,.0f}",
        f"{one['parameters']:,}" if "parameters" in one else NONE,
        number(one["sampling"].get("cpu_seconds_per_10000")),
    ]  # fmt: skip


def tables_mixed(report: Report) -> str:
    return _likelihood_mixed(report) + "\n" + _quality_mixed(report)


def _likelihood_mixed(report: Report) -> str:
    """All rows and those that are not far out, of which a few may decide the mean of all."""
    rows, counts = [], []
    for one in report["models"].values():
        for name, found in one["likelihood"].items():
            near = found["near"]
            title = one["title"] if name == "exact" else f"{one['title']}, {ESTIMATORS[name]}"
            cells = [with_error(part["nats"], part["error"]) for part in (found, near)]
            rows.append((title, [found["nats"], near["nats"], found["median"]],
                         [*cells, with_error(found["median"])]))  # fmt: skip
            counts.append([f"{found['n']:,}", with_error(found["scatter_of_seeds"], None, 3)])
    marked = [cells + count for cells, count in zip(best_marked(rows), counts, strict=True)]
    head = [f"{spelt(report['data'])}, {NATS}", "all rows", "without rows far out", "median",
            "rows", "scatter of the noise"]  # fmt: skip
    return table(head, marked)


def _quality_mixed(report: Report) -> str:
    rows = []
    for one in report["models"].values():
        apart, r2 = one["c2st"], one["regression_r2"]
        cells = [with_error(apart["accuracy"], apart["error"], 3), with_error(r2, None, 3)]
        rows.append((one["title"], [apart["accuracy"], -r2], cells))
    marked = [cells + _costs(one) for cells, one in
              zip(best_marked(rows), report["models"].values(), strict=True)]  # fmt: skip
    real = report["training_rows"]
    apart, r2 = real["c2st"], real["regression_r2"]
    marked.append(["training rows", with_error(apart["accuracy"], apart["error"], 3),
                   with_error(r2, None, 3), *[NONE] * 4])  # fmt: skip
    head = [spelt(report["data"]), "told apart", "R² of log price", *COSTS]
    return table(head, marked)


# --- images --------------------------------------------------------------------------------------


def of_size(report: Report) -> str:
    """The name of a set of images, and their size."""
    return f"{spelt(report['data'])} at {report['size']} x {report['size']}"


def likelihood_images(reports: Reports) -> str:
    return "\n".join(map(_likelihood_images, reports))


def _likelihood_images(report: Report) -> str:
    rows = [
        [f"{one['title']}, {found['title']}", with_error(found["bits"], found["bits_error"], 3),
         f"{found['n']:,}"]
        for one in report["models"].values()
        for found in one["likelihood"].values()
    ]  # fmt: skip
    cost = [
        [one["title"], f"{one['parameters']:,}", f"{one['steps']:,}",
         f"{one['train_cpu_seconds'] / 60:.1f}"]
        for one in report["models"].values()
    ]  # fmt: skip
    return (
        table([f"{of_size(report)}, bits per dimension", "test images", "n"], rows)
        + "\n"
        + table(["", "parameters", "updates", "CPU minutes"], cost)
    )


def steps_images(reports: Reports) -> str:
    return "\n".join(map(_steps_images, reports))


def _steps_images(report: Report) -> str:
    rows = []
    for name, one in report["models"].items():
        for found in one["sampling"]:
            bound = (
                at(one["bound_by_steps"], str(found["num_steps"])) if name == "diffflow" else None
            )
            rows.append([
                f"{one['title']}, {_way(found)}", number(found["evaluations"]),
                number(found["cpu_seconds_per_10000"] / 10), number(found["fd"]),
                *(with_error(found[part]) for part in ("precision", "recall", "coverage")),
                with_error(at(bound, "bits"), at(bound, "bits_error"), 3),
            ])  # fmt: skip
    for part, title in (("test", "training against test images"), ("train", "training images")):
        real = report["floors"][part]
        rows.append([f"*{title}*", NONE, NONE, number(real["fd"]),
                     *(with_error(real[name]) for name in ("precision", "recall", "coverage")),
                     NONE])  # fmt: skip
    head = [f"{of_size(report)}, {report['label']}", "evaluations", "s per 1,000", "FD",
            "precision", "recall", "coverage", "bound, bits/dim"]  # fmt: skip
    return table(head, rows)


def diffusion_start(report: Report) -> str:
    """DiffFlow started from nothing, and as a diffusion."""
    rows = [
        [f"{one['title']}, power {one['config']['model']['power']}",
         f"{one['train_cpu_seconds'] / 60:.0f}", f"{one['steps']:,}",
         *(number(one["at"][n]["fd"]) for n in ("5", "30")),
         *(with_error(one["at"][n]["bits"]) for n in ("5", "30")),
         with_error(one["at"]["30"]["coverage"])]
        for one in report["runs"].values()
    ]  # fmt: skip
    head = ["DiffFlow, started", "CPU minutes", "updates", "FD, N = 5", "FD, N = 30",
            "bits, N = 5", "bits, N = 30", "coverage, N = 30"]  # fmt: skip
    return table(head, rows)


# --- sweep ---------------------------------------------------------------------------------------


def sweep(reports: Reports) -> str:
    return "\n".join(map(_sweep_table, reports))


def _sweep_table(report: Report) -> str:
    rows = []
    for part, one in report["parts"].items():
        title = {"flow": "flow alone", "diffusion": "diffusion alone"}.get(part, f"T = {part}")
        likelihood = one["likelihood"].get("ode") or one["likelihood"]["exact"]
        sampling, apart = one["sampling"], one["c2st"]
        values = [likelihood["nats"], sampling["mean"], apart["accuracy"],
                  sampling["cpu_seconds_per_10000"]]  # fmt: skip
        cells = [
            with_error(likelihood["nats"], likelihood["error"]),
            with_error(sampling["mean"], sampling["error"], 1),
            with_error(apart["accuracy"], apart["error"], 3),
            number(sampling["cpu_seconds_per_10000"]),
        ]
        rows.append((title, values, cells))
    updates = [f"{one['steps']:,}" for one in report["parts"].values()]
    marked = [[*cells, n] for cells, n in zip(best_marked(rows), updates, strict=True)]
    head = [spelt(report["data"]), NATS, "energy distance / real", "told apart",
            "s per 10,000", "updates"]  # fmt: skip
    return table(head, marked)


_IN_2D = [f"compare_2d_{name}" for name in SETS_2D]
_OF_IMAGES = [f"compare_images_{name}" for name in IMAGES]
_OF_TABLES = [f"compare_tables_{name}" for name in TABLES]
BLOCKS: dict[str, Block] = {
    "likelihood-2d": of_all(_IN_2D, likelihood_2d),
    "quality-2d": of_all(_IN_2D, quality_2d),
    "cost-2d": of_all(_IN_2D, cost_2d),
    "steps-2d": of_all(_IN_2D, steps_2d),
    "likelihood-tables": of_all(_OF_TABLES, likelihood_tables),
    "quality-tables": of_all(_OF_TABLES, quality_tables),
    "imputation": of("imputation_magic", imputation),
    "tables-mixed": of("tables_mixed_diamonds", tables_mixed),
    "likelihood-images": of_all(_OF_IMAGES, likelihood_images),
    "steps-images": of_all(_OF_IMAGES, steps_images),
    "filling": of("filling_mnist16", filling),
    "digits-by-class": of("digits_by_class_mnist16", table_of_digits),
    "diffusion-start": of("diffusion_start_mnist16", diffusion_start),
    "sweep": of_all([f"dinof_sweep_{name}" for name in SWEEPS], sweep),
    "conditions": conditions(BENCHMARKS),
}
