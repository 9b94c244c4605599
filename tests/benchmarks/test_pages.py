"""The pages are made from reports: every number of hand-made ones is where it belongs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from PIL import Image

from benchmarks.common.files import RESULTS
from benchmarks.pages import concepts, gpu, pictures, speed, tables, write

Reports = dict[str, dict[str, Any]]
MACHINE = {"cpu": "Z", "threads": 1, "commit": "0123456789ab", "dirty": False}
HEAD = {"machine": MACHINE}
#: Drawn by `diffflow compare`; the pages say of which runs.
BY_THE_PROGRAM = {"processes.png", "processes_models.png"}


def spread(value: float) -> dict[str, Any]:
    return {
        "median": value, "quartiles": [0.5 * value, 2 * value], "min": 0.25 * value, "all": [value]
    }  # fmt: skip


def variant(ratio: float, peak: float) -> dict[str, Any]:
    return {
        "title": f"takes {ratio:g}", "ratio": spread(ratio), "seconds": spread(0.01 * ratio),
        "first_call_seconds": 3.25, "mebibytes": peak,
    }  # fmt: skip


def steps_report(threads: int, **ratios: float) -> dict[str, Any]:
    return {
        "benchmark": "steps", "command": "python -m benchmarks.speed.steps", **HEAD,
        "machine": {**MACHINE, "threads": threads}, 
        "problem": {"dim": 2, "batch": 1234, "num_steps": 17, "width": 96, "depth": 5,
                    "side": None},
        "batch_of_ddpm": 2345, "multiply_adds": 8e9, "product_share": {"median": 0.935},
        "gradient_errors": {"float32": 1.5e-6, "bfloat16": None, "other_noise": 0.25},
        "torchsde_adjoint_gradient_error": 0.875,
        "variants": {n: variant(r, peak=7.5) for n, r in ratios.items()},
    }  # fmt: skip


@pytest.fixture
def reports() -> Reports:
    """A report of each kind."""
    two = {"ddpm": 1.0, "release": 60.0, "graph": 24.0, "adjoint": 30.0, "compiled": 21.0}
    one = {**two, "fused": 10.0, "fused_bf16": 5.0, "torchsde": 45.0}
    image = steps_report(1, ddpm=1.0, graph=8.0)
    image["problem"] |= {"side": 14, "batch": image["batch_of_ddpm"]}
    point = {"ratio": spread(2.0), "seconds": spread(0.125), "mebibytes": 3.5}
    grown = {"time": {"all": 0.75, "last": 1.25}, "memory": {"all": 0.0, "last": -0.5}}
    names = ("fused", "adjoint")
    axis = {
        "values": [5, 1000],
        "points": {n: [{"value": v, **point} for v in (5, 1000)] for n in names},
        "exponents": dict.fromkeys(names, grown),
    }
    run = {"title": "DiffFlow, few", "rate": 0.003, "points": [
        {"seconds": 2.0, "updates": 11, "nats": 3.25, "error": 0.015},
        {"seconds": 4.0, "updates": 2222, "nats": 2.125, "error": 0.025},
    ]}  # fmt: skip
    times = {"fused": {"median": 4e-6}, "eager": {"median": 1e-5}, "add": {"median": 1e-6}}
    return {
        "steps_2d_1": steps_report(1, **one),
        "steps_2d_2": steps_report(2, **two, fused=8.0, fused_bf16=6.0),
        "steps_small_1": steps_report(1, ddpm=1.0, fused=0.875),
        "steps_table-6_1": steps_report(1, ddpm=1.0, fused=11.5),
        "steps_image_1": image,
        "scaling_1": {"benchmark": "scaling", "command": "s", **HEAD,
                      "titles": {n: n for n in names},
                      "axes": {"num_steps": axis, "batch": axis, "width": axis}},
        "memory_1": {
            "benchmark": "memory", "command": "m", **HEAD, "share_in_paper": 0.02,
            "titles": {"graph": "graph", "adjoint": "adjoint", "fused": "fused"},
            "cases": {
                "2d, B = 20,000": {
                    "state_bytes": 2**20, "saved_bytes": 200 * 2**20,
                    "saved_state_bytes": 2**20, "mebibytes": {"adjoint": 10.0, "fused": 23.5},
                }
            },
        },
        "equal_compute_1": {
            "benchmark": "equal_compute", "command": "e", **HEAD, "data": "checkerboard",
            "entropy": 1.75, "runs": {"a": run, "b": {**run, "title": "DDPM, many"}},
        },
        "ops_1": {"benchmark": "ops", "command": "o", **HEAD, "ops": [
            {"op": "em_step", "shape": [2000, 2], "ratios": {"eager": 2.5}, "seconds": times}
        ], "imports": {"both": 1.25, "torch": 1.125}},
    }  # fmt: skip


def block(name: str, reports: Reports) -> str:
    return speed.BLOCKS[name](reports)


def row(text: str, start: str) -> list[str]:
    """The cells of the one row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("| ").split(" | ")][1:]


# --- tables --------------------------------------------------------------------------------------


def test_steps(reports: Reports) -> None:
    two = row(block("steps-2d", reports), "takes 60")
    one_thread = ["600 (150)", "60.0 (30.0\N{EN DASH}120)"]
    assert two == [*one_thread, *one_thread, "3.25", "7.50"]
    # torchsde has no row of two threads.
    assert row(block("steps-2d", reports), "takes 45")[2:4] == ["\N{EN DASH}"] * 2
    assert row(block("steps-tables", reports), "takes 11.5") == [
        "11.5 (5.75\N{EN DASH}23.0)", "115 (28.8)",
    ]  # fmt: skip
    small = block("steps-small", reports)
    assert "1234 trajectories, DDPM of 2,345: over DDPM" in small
    assert row(block("steps-image", reports), "takes 8")[0].startswith("8.00")
    assert row(block("sizes", reports), "image")[0] == "1 x 14 x 14"
    assert row(block("sizes", reports), "2d") == [
        "2", "1,234", "17", "perceptron", "96", "5",
    ]  # fmt: skip
    assert "at 94% of the rate" in block("product-share", reports)


def test_gradients(reports: Reports) -> None:
    found = row(block("gradients", reports), "2d")
    assert found == ["1.5e-06", "\N{EN DASH}", "2.5e-01", "8.8e-01"]


def test_growth_memory_and_bounds(reports: Reports) -> None:
    assert row(block("scaling", reports), "steps N, fused") == [
        "5 to 1,000", "0.75", "1.25", "0.00", "\N{MINUS SIGN}0.50", "125 to 125", "3.50 to 3.50",
    ]  # fmt: skip
    assert row(block("memory", reports), "2d, B = 20,000") == [
        "1.00", "200", "0.50%", "\N{EN DASH}", "10.0", "23.5", "10.0%",
    ]  # fmt: skip
    text = block("equal-compute", reports)
    assert row(text, "DiffFlow, few, rate 0.003") == [
        "**3.250 ± 0.015**", "**2.125 ± 0.025**", "2,222",
    ]  # fmt: skip
    assert "1.750 nats" in text


def test_ops(reports: Reports) -> None:
    text, none = block("ops", reports), "\N{EN DASH}"
    assert row(text, "`em_step`, 2,000 x 2") == ["4.00", "10.0", none, "2.50", *[none] * 4]
    assert "`torch.add` takes 1.00 µs on 2,000 x 2. " in text
    assert "takes 1.25 s, of which the import of torch takes 1.12 s." in text


def test_reports_of_a_gpu_are_shown_and_those_of_a_dry_run_are_not() -> None:
    report = gpu_check_report()
    assert block("gpu", {"gpu-check-x": {**report, "device": "cpu"}}) == gpu.NO_GPU
    text, none = block("gpu", {"gpu-check-x": report}), "\N{EN DASH}"
    assert text.startswith(
        "NVIDIA X, 2026-01-02, commit abcdefg: 5 sections, 2 passed, 1 failed, 1 stopped, "
        "1 not run; [gpu-check-x.json](../benchmarks/results/gpu-check-x.json)."
    )
    assert row(text, "launch") == ["failed", "2.50", "1 passed, 1 failed", "1 of 3"]
    assert row(text, "memcheck") == ["not run", none, none, "no time: 3 s were left"]
    assert "\n- em_step / normal failed: 5 ulp\n" in text
    assert "**launch**" not in text
    # What was measured before a section was stopped is shown.
    assert row(text, "ddpm") == ["2,000", "1.50", none, none]
    assert row(text, "release") == ["2,000", none, none, "out of memory"]
    assert row(text, "copy, float32") == ["64 x 256", "2,000", "0.90"]


def gpu_check_report() -> dict[str, Any]:
    """Sections of each outcome."""
    tests = [
        {"machine": {"commit": "abcdefghi", "gpu": "NVIDIA X"}},
        {"test": "normal", "status": "passed", "ulps": 0},
        {"test": "em_step | normal", "status": "failed", "why": "5 ulp"},
    ]
    steps = [
        {"step": "ddpm", "batch": 2000, "milliseconds": 1.5},
        {"step": "graph", "batch": 2000, "milliseconds": 0.75, "over_ddpm": 0.5},
        {"step": "release", "batch": 2000, "why": "out of memory"},
    ]
    kernels = [{"kernel": "copy, float32", "rows": [64, 256], "gigabytes_per_second": 2000.0,
                "share_of_copy": 0.9}]  # fmt: skip
    sections = [
        {"name": "build", "status": "passed", "why": "", "seconds": 60.0, "rows": []},
        {"name": "launch", "status": "failed", "why": "1 of 3", "seconds": 2.5, "rows": tests},
        {"name": "steps", "status": "stopped", "why": "60 s", "seconds": 60.0, "rows": steps},
        {"name": "bandwidth", "status": "passed", "why": "", "seconds": 9.0, "rows": kernels},
        {"name": "memcheck", "status": "not run", "why": "no time: 3 s were left", "rows": []},
    ]
    return {"name": "gpu-check-x", "device": "cuda", "card": "NVIDIA X", "commit": None,
            "time": "2026-01-02T03:04:05Z", "sections": sections}  # fmt: skip


# --- pages ---------------------------------------------------------------------------------------


def test_without_reports_nothing_is_claimed() -> None:
    for blocks in write.PAGES.values():
        for name, make in blocks.items():
            assert make({}) == (gpu.NO_GPU if name == "gpu" else tables.MISSING), name


def test_pages_and_pictures_are_made_from_the_reports_alone(
    reports: Reports, tmp_path: Path
) -> None:
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    for name in write.PAGES:
        shutil.copy(ROOT / "docs" / f"{name}.md", tmp_path)
    write.main(["--results", str(tmp_path), "--docs", str(tmp_path)])
    text = (tmp_path / "benchmarks.md").read_text()
    linked = re.findall(r"\(pictures/([\w.]+)\)", text)
    assert sorted(linked) == sorted(path.name for path in tmp_path.glob("pictures/*.png"))
    assert len(linked) == 3
    assert "60.0 (30.0" in text
    assert write.filled(text, speed.BLOCKS, write.read_results(tmp_path)) == text
    assert (tmp_path / "results.md").read_text().count(tables.MISSING) == 15


def test_pictures_are_those_that_have_reports(reports: Reports, tmp_path: Path) -> None:
    only = {"steps_image_1": reports["steps_image_1"]}
    drawn = pictures.draw_pictures(only, tmp_path, tmp_path)
    assert [path.name for path in drawn] == ["benchmarks_steps.png"]
    assert pictures.draw_pictures({}, tmp_path, tmp_path) == []


@pytest.mark.slow
def test_all_committed_pictures_are_drawn_from_committed_reports(tmp_path: Path) -> None:
    drawn = pictures.draw_pictures(write.read_results(RESULTS), RESULTS, tmp_path)
    drawn += concepts.draw_diagrams(tmp_path)
    committed = {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert {path.name for path in drawn} == committed - BY_THE_PROGRAM


def test_the_film_of_the_first_page_loads_quickly_and_loops() -> None:
    file = ROOT / "docs" / "pictures" / "processes.gif"
    assert file.stat().st_size < 700_000
    with Image.open(file) as film:
        assert film.info["loop"] == 0
        assert film.n_frames > 20  # pyright: ignore[reportAttributeAccessIssue]
    # For readers who ask for less motion.
    assert 'url("processes.png")' in (ROOT / "docs" / "motion.css").read_text()


@pytest.mark.parametrize("page", write.PAGES)
def test_committed_page_fits_the_committed_reports(page: str) -> None:
    text, blocks = (ROOT / "docs" / f"{page}.md").read_text(), write.PAGES[page]
    assert set(re.findall(r"<!-- begin ([\w-]+)", text)) == set(blocks)
    assert write.filled(text, blocks, write.read_results(RESULTS)) == text


def test_every_committed_report_stands_on_one_page() -> None:
    docs = [(ROOT / "docs" / f"{page}.md").read_text() for page in write.PAGES]
    for name, report in write.read_results(RESULTS).items():
        if "benchmark" in report:
            assert sum(f"results/{name}.json" in text for text in docs) == 1, name


def test_prose_of_the_page_has_no_measured_number() -> None:
    """Numbers with units or decimals stand in tables only, which are made anew."""
    prose = write.BLOCK.sub("", (ROOT / "docs" / "benchmarks.md").read_text())
    assert not re.findall(r"\d+\.\d+|\d+(?:\.\d+)? ?(?:ms|s|MiB|%|x|times)\b", prose)


def test_least_value_of_a_column_is_bold() -> None:
    rows = [("a", [2.0, None], ["2", "x"]), ("b", [1.0, 3.0], ["1", "3"])]
    assert tables.best_marked(rows) == [["a", "2", "x"], ["b", "**1**", "**3**"]]


def test_a_report_names_each_machine_of_its_parts_once() -> None:
    parts = {
        "a": {"machine": MACHINE},
        "b": {"machine": {**MACHINE, "cpu": "Y", "commit": "f" * 40, "dirty": True}},
        "c": {"machine": MACHINE},
    }
    report = {"benchmark": "quality", "command": "q", **HEAD, "models": parts}
    page = tables.conditions(["quality"])({"r": report})
    row = "| `q` | Z, 1 thread; Y, 1 thread | 0123456; fffffff and changes |"
    assert row in page
