"""The report of a run: what it says, that it needs nothing else, and how a browser shows it."""

from __future__ import annotations

import io
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from browser import browse, needs_browser, served
from training_runs import write_images

pytest.importorskip("matplotlib", reason="needs the plot extra")
pytest.importorskip("zuko")

from PIL import Image

from diffflow_ext.training import configure, evaluate, format_table, load_run, train
from diffflow_ext.training.evaluation import report, report_pictures
from diffflow_ext.training.evaluation.report import report_page
from diffflow_ext.training.evaluation.run_data import open_run_data

RNG = np.random.default_rng(3)
SCRIPT = "<script>alert(1)</script>"
TINY: dict[str, Any] = {"steps": 4, "log_every": 1, "threads": 1, "warmup": 1, "batch_size": 16}
SMALL: dict[str, Any] = {**TINY, "width": 8, "depth": 1}
#: Times at most, fewer than without a test.
MOST = 8
#: Pages by the name of their run.
NAMES = ("points", "mixed", "images", "flow")


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags = list[tuple[str, dict[str, str]]]()
        self.words, self.inside = list[str](), ""
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs: of points, evaluated; of a table with gaps and conditions; of images; a flow."""
    out = tmp_path_factory.mktemp("runs")
    points = pd.DataFrame({SCRIPT: RNG.normal(1000.0, 5.0, 600), "b": RNG.normal(size=600)})
    points.to_csv(out / "points & more.csv", index=False)
    data = str(out / "points & more.csv")
    plan = "0:1,2:2,3:3"
    config = configure("diffflow", data=data, num_steps=3, progressive=plan, **SMALL)
    train(config, out / "points", progress=False)
    kind = RNG.choice(["<b>", "c", "d"], 200)
    length = np.where(RNG.uniform(size=200) < 0.2, np.nan, RNG.normal(size=200))
    count, shape = RNG.integers(0, 500, 200), RNG.choice(["o", "&amp;"], 200)
    table = {"kind": kind, "length": length, "count": count, "shape": shape}
    pd.DataFrame(table).to_csv(out / "mixed.csv", index=False)
    mixed = {"data": str(out / "mixed.csv"), "missing": "mask", "condition": "shape"}
    train(configure("ddpm", timesteps=30, **mixed, **SMALL), out / "mixed", progress=False)
    images = {"data": str(write_images(out / "pictures", 8, 40, 12)), "condition": "label"}
    images |= {"unet_base": 8, "unet_mults": "1", "unet_blocks": 1, "num_steps": 2}
    train(configure("diffflow", **images, **TINY), out / "images", progress=False)
    train(configure("flow", data=data, flow_hidden="8", **TINY), out / "flow", progress=False)
    return out


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return evaluate(folder / "points", device="cpu", figures=False, ode_n=60)


@pytest.fixture(scope="module")
def pages(folder: Path, result: dict[str, Any]) -> dict[str, str]:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_pictures, "FRAMES", MOST)
        found = {name: report_page(folder / name, device="cpu") for name in NAMES}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_page_needs_nothing_else(pages: dict[str, str], name: str, folder: Path) -> None:
    parsed = Parsed(pages[name])
    addresses = [
        value
        for _, attributes in parsed.tags
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "poster", "action", "data", "xlink:href")
    ]
    assert len(addresses) > 3
    assert all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp", pages[name])
    assert str(folder) not in pages[name]
    assert len(pages[name]) < 3_000_000
    policies = [tag for tag in parsed.of("meta") if "Policy" in tag.get("http-equiv", "")]
    assert policies[0]["content"].startswith("default-src 'none'; img-src data:;")
    for image in parsed.of("img"):
        assert image["alt"]
        with Image.open(io.BytesIO(b64decode(image["src"].partition(",")[2]))) as picture:
            ratio = picture.size[0] / picture.size[1]
        assert int(image["width"]) / int(image["height"]) == pytest.approx(ratio, rel=0.05)
    assert parsed.of("html") == [{"lang": "en"}]
    assert len(parsed.of("h1")) == 1
    assert all(head["scope"] in ("row", "col") for head in parsed.of("th"))


def test_texts_of_the_run_are_escaped(pages: dict[str, str]) -> None:
    for name in NAMES:
        assert [attributes for attributes in Parsed(pages[name]).of("script")] == [{}]
        assert "<b>" not in pages[name]
    assert SCRIPT in Parsed(pages["points"]).text
    assert "points & more.csv" in Parsed(pages["points"]).text
    assert "'<b>', 'c', 'd'" in Parsed(pages["mixed"]).text
    assert "'&amp;', 'o'" in Parsed(pages["mixed"]).text


def test_the_evaluation_is_that_of_the_program(
    pages: dict[str, str], result: dict[str, Any], folder: Path
) -> None:
    text = Parsed(pages["points"]).text
    for line in format_table(result).splitlines()[1:]:
        for cell in re.split(r"\s{2,}", line.strip()):
            assert cell in text
    assert f"step 4, N = 3, n = 60, seed 0; diffflow_ext {result['package']}" in text
    assert f"{result['gaussian_nll']:.4f} nats on test data" in text
    assert "has not been evaluated" not in text
    assert "has not been evaluated" in Parsed(pages["flow"]).text
    assert "diffflow evaluate flow" in Parsed(pages["flow"]).text


def test_the_mean_of_log_p_is_that_of_the_evaluation(
    pages: dict[str, str], result: dict[str, Any]
) -> None:
    said = f"Means: test data {-result['ode_data_units']:.4g} nats (n = 60)"
    assert said in Parsed(pages["points"]).text
    assert "bits a dimension" in Parsed(pages["images"]).text


def test_what_samples_and_their_density_are_of(
    pages: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    """Of an ODE with the marginals of the SDE, of one without, of a bound and of a density."""
    agree, drawn = "have the same histogram.", "by the SDE; log p is that of the ODE"
    found = {name: (agree in page, drawn in page) for name, page in pages.items()}
    both, one = (True, True), (True, False)
    assert found == {"points": both, "mixed": both, "images": one, "flow": one}
    readings = dict[str, str]()
    for forward in ("linear", "learned"):
        data = str(folder / "points & more.csv")
        config = configure("nfdm", data=data, forward=forward, **SMALL)
        train(config, tmp_path / forward, progress=False)
        run = load_run(tmp_path / forward)
        densities = report_pictures.densities_of(run, open_run_data(run), run.sample(
            9, units="training"))  # fmt: skip
        assert isinstance(densities, report_pictures.Densities)
        readings[forward] = densities.reading
    assert readings["linear"].endswith(agree)
    assert readings["learned"].endswith("which with a learned forward process is another model.")


def test_curve_and_configuration(pages: dict[str, str]) -> None:
    text = Parsed(pages["points"]).text
    assert "The number of steps N is 1 at first, 2 from step 3 on, 3 from step 4 on." in text
    assert "num_steps 3 default: 30" in text
    assert "steps 4 default: 2000" in text
    assert "learning_rate 0.003 schedule cosine" in text  # As by default.
    assert "drift_scale 5 score_scale 22.3607" in text
    assert "steps 4 parameters" in text
    assert "columns kind, length, count given shape (one of" in Parsed(pages["mixed"]).text


def test_states_from_noise_to_data(pages: dict[str, str]) -> None:
    """The last state is shown where no script runs, and the slider isn't."""
    counts = {"points": 4, "mixed": MOST, "images": 3}  # N + 1, or the most.
    for name, count in counts.items():
        parsed = Parsed(pages[name])
        states = [image for image in parsed.of("img") if "data-time" in image]
        assert len(states) == count
        assert ["hidden" in image for image in states] == [True] * (count - 1) + [False]
        assert states[-1]["data-time"] == "t = 0"
        assert len({image["src"] for image in states}) == count
        (slider,) = parsed.of("input")
        assert slider["max"] == slider["value"] == str(count - 1)
        (box,) = [tag for tag in parsed.of("div") if tag.get("id") == "slider"]
        assert "hidden" in box
    flow = Parsed(pages["flow"])
    assert not flow.of("input")
    assert "The model flow has no diffusion whose states could be shown" in flow.text
    given = "samples, which are given the conditions of the test data"
    assert {name: given in Parsed(text).text for name, text in pages.items()} == {
        "points": False, "mixed": True, "images": True, "flow": False,
    }  # fmt: skip
    # Columns with an order are chosen before classes.
    assert "length and count. Each particle keeps the colour" in Parsed(pages["mixed"]).text


def test_large_images_are_fewer() -> None:
    """Pictures of noise can't be packed: those of a page have some MB at most."""
    shapes = [(1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 512, 512)]
    counts = [report_pictures.fitting(16, 16 * 3 * 32 * 32, shape) for shape in shapes]
    assert counts == [16, 16, 4, 1]


def test_log_p_that_is_not_finite_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With conditions, samples that are left out don't shift those of the others."""
    run, real = load_run(folder / "mixed"), report_pictures.log_probs
    dataset = open_run_data(run)
    samples = report.samples_like_test(run, dataset, 20, seed=0)
    whole = report_pictures.densities_of(run, dataset, samples)
    samples[0] = torch.nan
    seen = list[torch.Tensor]()

    def spied(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        density, weight = real(*args)
        seen.append(args[0].context(0, 0, len(density)))
        return torch.where(torch.arange(len(density)) < wrong, -torch.inf, density), weight

    monkeypatch.setattr(report_pictures, "log_probs", spied)
    wrong, wanted = 2, dataset.given_of("test")
    assert wanted is not None
    found = report_pictures.densities_of(run, dataset, samples)
    assert isinstance(found, report_pictures.Densities)
    assert isinstance(whole, report_pictures.Densities)
    assert "nats (n = 18, and 2 not finite), samples" in found.caption
    assert "(n = 17, and 2 not finite)" in found.caption
    assert "not finite" not in whole.caption
    assert seen[1].equal(seen[0][1:20])
    wrong = 1000
    assert "No log p" in report_pictures.densities_of(run, dataset, samples)


def test_a_page_is_the_same_again(pages: dict[str, str], folder: Path) -> None:
    assert report_page(folder / "flow", device="cpu") == pages["flow"]


def test_a_step_later_the_evaluation_is_old(
    pages: dict[str, str], folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    assert "went on after this evaluation" not in pages["points"]
    copy = tmp_path / 'a"b <i>'
    shutil.copytree(folder / "flow", copy)
    spelt = {**result, "step": 3, "bound_median": None, "entropy": None, "c2st": None}
    (copy / "evaluation.json").write_text(json.dumps(spelt))
    text = report_page(copy, device="cpu")
    assert "The run went on after this evaluation" in text
    assert "told apart from data nan" in Parsed(text).text
    assert Parsed(text).text.count('a"b <i>') == 3  # Title, heading, and the command.
    assert "<i>" not in text
    lacking = {name: value for name, value in result.items() if name != "package"}
    for wrong in ("{", "[]", "{}", json.dumps(lacking), json.dumps({**result, "bound": "x"})):
        (copy / "evaluation.json").write_text(wrong)
        with pytest.raises(ValueError, match="expected an evaluation of this version, got"):
            report_page(copy, device="cpu")


def test_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no run there"):
        report_page(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="found nothing at"):
        report_page(folder / "flow", tmp_path / "nothing.csv", device="cpu")
    nan = torch.full((7, 2), torch.nan)
    monkeypatch.setattr(report, "samples_like_test", lambda *args, **options: nan)
    with pytest.raises(ValueError, match="expected finite samples, got none in 5000"):
        report_page(folder / "flow", device="cpu")


def test_without_a_log_and_with_some_samples_that_are_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = report.samples_like_test

    def some(*args: Any, **options: Any) -> torch.Tensor:
        samples = real(*args, **options)
        samples[:3] = torch.inf
        return samples

    monkeypatch.setattr(report, "samples_like_test", some)
    log = folder / "flow" / "metrics.jsonl"
    aside = log.rename(folder / "log")
    try:
        text = Parsed(report_page(folder / "flow", device="cpu")).text
    finally:
        aside.rename(log)
    assert "The run has no log (metrics.jsonl), so there is no curve." in text
    assert "3 samples aren't finite, and are left out." in text
    assert "equally many of each" in text


FRAMES = """<!doctype html><title>frames</title><link rel="icon" href="data:,">
{frames}<pre id="found"></pre><script>
onload = () => {{
  const found = {{}};
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument, slider = page.querySelector("input");
    const at = place => {{
      slider.value = place;
      slider.dispatchEvent(new Event("input"));
      const [shown, ...more] = page.querySelectorAll("#states img:not([hidden])");
      return [shown.dataset.time, more.length, page.getElementById("time-shown").textContent,
        slider.getAttribute("aria-valuetext"), shown.getBoundingClientRect().width > 50];
    }};
    found[frame.name] = {{
      wide: page.documentElement.scrollWidth, inside: frame.clientWidth,
      slider: slider && slider.getBoundingClientRect().height > 0,
      states: slider ? [at(slider.max), at(0), at(slider.max)] : null,
      broken: [...page.images].filter(i => !i.hidden && i.naturalWidth === 0).length,
    }};
  }}
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


@needs_browser
def test_a_browser_shows_pages_on_a_phone_and_a_desk(
    pages: dict[str, str], tmp_path: Path
) -> None:
    """All in one start of the browser: frames have the widths."""
    site = tmp_path / "site"
    site.mkdir()
    for name in NAMES:
        (site / f"{name}.html").write_text(pages[name], encoding="utf-8")
    tag = '<iframe name="{0}-{1}" src="{0}.html" width="{1}" height="800"></iframe>'
    frames = [tag.format(name, width) for name in NAMES for width in (360, 1280)]
    (site / "frames.html").write_text(FRAMES.format(frames="\n".join(frames)))
    with served(site) as (address, asked):
        shown, console = browse(f"{address}/frames.html", tmp_path / "browser")
    assert not console
    assert {*asked} == {"/frames.html", *(f"/{name}.html" for name in NAMES)}
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', shown, re.S)
    found = json.loads(text)
    assert len(found) == 8
    for name, one in found.items():
        assert one["wide"] <= one["inside"] > 0, name
        assert one["broken"] == 0
        if name.startswith("flow"):
            assert one["slider"] is None
            continue
        assert one["slider"]
        last, first, again = one["states"]
        assert last == again == ["t = 0", 0, "t = 0", "t = 0", True]
        assert first[0] == first[2] == first[3] != "t = 0"
        assert first[1:2] == [0]
        assert first[4]
