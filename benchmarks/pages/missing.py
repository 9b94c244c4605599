"""The tables of docs/results.md about what is missing of rows and pictures."""

from __future__ import annotations

from .tables import Report, best_marked, number, table, with_error


def imputation(report: Report) -> str:
    """Returns the table of draws of hidden values."""
    rows = []
    for one in report["models"].values():
        score, inside, spent = one["crps"], one["within_80"], one["impute_cpu_seconds"]
        cells = [with_error(score["mean"], score["error"], 3), f"{100 * inside:.0f} %"]
        cells += [number(one.get("train_cpu_seconds")), number(spent)]
        rows.append((one["title"], [score["mean"], None, None, None], cells))
    head = ["", "CRPS", "in the middle 80 %", "s of training", "s of draws"]
    return table(head, best_marked(rows))


def filling(report: Report) -> str:
    """Returns the table of half pictures."""
    names = ("same_digit", "energy_score", "mse", "mse_best", "mse_of_mean")
    rows = []
    for one in report["models"].values():
        means, errors = ([one[name][part] for name in names] for part in ("mean", "error"))
        cells = [f"{100 * means[0]:.0f} ± {100 * errors[0]:.0f} %"]
        cells += [with_error(m, e, 3) for m, e in zip(means[1:], errors[1:], strict=True)]
        costs = [number(one.get("train_cpu_seconds")), number(one["fill_cpu_seconds"])]
        # The largest share is best.
        rows.append((one["title"], [-means[0], *means[1:], None, None], cells + costs))
    n = report["n"]
    head = ["", "same digit", "energy score", "error of a draw", f"best of {n}",
            "error of their mean", "s of training", "s of draws"]  # fmt: skip
    return table(head, best_marked(rows))
