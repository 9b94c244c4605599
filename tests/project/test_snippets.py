"""Commands and snippets of README.md and of the pages of the site run as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import page_files
import pytest
import snippets
from helpers import ROOT
from snippets import PAGES

from diffflow_ext.cli import commands


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix("")).removeprefix("docs/")


WITH_SNIPPETS = [
    page
    for page in PAGES
    if any(block.language in ("sh", "python") for block in snippets.blocks(page.read_text()))
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with a small set of the name of MNIST."""
    page_files.mnist(tmp_path / "home")
    page_files.no_network(monkeypatch)
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path / "home"))
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("folder", "one_thread")
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_a_page_runs_from_its_beginning_to_its_end(page: Path) -> None:
    names = page_files.ASSUMED.get(name_of(page), dict)()
    snippets.run_page(page.read_text(), str(page), {"__name__": "page", **names})


@pytest.mark.slow
@pytest.mark.usefixtures("folder", "one_thread")
def test_strange_rows_are_found_as_the_page_says() -> None:
    """At full length: all 50 of them, and about one in a hundred of 950 normal rows."""
    page, names = ROOT / "docs" / "howto" / "anomalies.md", dict[str, Any]()
    snippets.run_page(page.read_text(), str(page), names, full=True)
    is_strange = names["p"] <= 0.01
    assert len(is_strange) == 1000
    assert is_strange[950:].all()
    assert is_strange[:950].sum() <= 20


def test_pages_that_assume_something_are_there() -> None:
    assert {*page_files.ASSUMED} <= {name_of(page) for page in WITH_SNIPPETS}
    assert len(WITH_SNIPPETS) > 15


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("```sh\ndiffflow sample nothing --out x.npy\n```", "exit code 2"),
        ("```sh\ndiffflow data list  # a comment\ndifflow doctor\n```", "neither run nor listed"),
        ("```sh\ntorchrun --standalone -m other.program\n```", "neither run nor listed"),
        ("```python\nvalue = 1\n```\n```python\nassert value == 2\n```", "assert"),
        ("```\ndiffflow doctor\n```", "line 1"),
        ("- a list\n  ```sh\n  diffflow doctor\n  ```", "line 2"),
        ("```bash\ndiffflow doctor\n```", "'bash'"),
        ("```sh\ndiffflow doctor", "does not end"),
    ],
)
def test_what_is_wrong_is_found(block: str, says: str) -> None:
    with pytest.raises(AssertionError) as caught:
        snippets.run_page(block, "page.md", {})
    assert says in str(caught.getrepr())


def test_trainings_are_shorter_and_nothing_else() -> None:
    train = "train nfdm data.csv --steps 20000 --num-steps 100 --out runs/a".split()
    assert snippets.shorter(train)[4:7] == ["8", "--num-steps", "100"]
    assert snippets.shorter(["train", "moons"])[2:] == ["--steps", "5"]
    assert snippets.shorter(["train", "--resume"]) == ["train", "--resume"]
    code = "train(configure(steps=20_000, num_steps=500)); steps = 1000; range(200); range(20)"
    assert snippets.shorter_python(code) == (
        "train(configure(steps=8, num_steps=500)); steps = 5; range(5); range(20)"
    )


def test_launchers_are_taken_off() -> None:
    line = "A=1 torchrun --nproc-per-node 4 \\\n  -m -- diffflow_ext sample R --n 5\n"
    (words,) = snippets.commands(snippets.Block("sh", line, 1))
    assert snippets.own_words(words) == ["sample", "R", "--n", "5"]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_flags_of_commands_exist(page: Path) -> None:
    """Without running anything, so not of commands that read the files of others first."""
    for block in snippets.blocks(page.read_text()):
        for words in snippets.commands(block) if block.language == "sh" else ():
            ours = words[0] in ("diffflow", *snippets.LAUNCHERS)
            if ours and not {"--config", "--resume"} & {*words}:
                command, *flags = snippets.own_words(words)
                commands.parse_command(command, flags)


def test_the_page_of_the_command_line_has_all_commands() -> None:
    text = (ROOT / "docs" / "command_line.md").read_text()
    blocks = [block for block in snippets.blocks(text) if block.language == "sh"]
    named = {words[1] for block in blocks for words in snippets.commands(block)}
    assert named == {*commands.COMMANDS, "train"}
