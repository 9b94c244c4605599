"""Blocks of pages in Markdown, and how they run: as written, but for shorter trainings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ROOT
from torch.distributed.run import get_args_parser

from diffflow_ext.cli import main

#: Pages that are made of notebooks run as notebooks.
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "notebooks"),
]
#: What a block may be. Only the first two are run; a file of settings is written if it has a name.
LANGUAGES = {"sh", "python", "toml", "text", "bibtex"}
#: Beginnings of commands that are not run here, and why.
NOT_RUN = {
    "make": "builds an environment of its own; a job of the workflows runs it",
    "pip": "installs packages; tests/project/test_packaging.py has the ways that are promised",
    "diffflow data fetch": "fetches from the net",
}
#: Programs that start ours on several machines; what they start is run in one process.
LAUNCHERS = ("torchrun", "srun")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which it begins."""

    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a page, but for directives of Sphinx."""
    found, lines = [], enumerate(text.splitlines(), 1)
    for number, line in lines:
        if "```" not in line:
            continue
        # A fence that a list indents would not be seen as one here.
        assert re.fullmatch(r"```\S.*", line), f"line {number}: {line}"
        inside = list[str]()
        for _, inner in lines:
            if inner == "```":
                break
            inside.append(inner)
        else:
            raise AssertionError(f"line {number}: a block that does not end")
        if not line.startswith("```{"):
            found.append(Block(line[3:], "\n".join(inside) + "\n", number + 1))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Returns the words of each command of a block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]  # A variable for this command alone.
        if words:
            yield words


def is_run(words: list[str]) -> bool:
    return not any(" ".join(words).startswith(f"{name} ") for name in NOT_RUN)


def own_words(words: list[str]) -> list[str]:
    """Returns what follows `diffflow` in a command, or in what a launcher starts."""
    if words[0] in LAUNCHERS:
        launched = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
        assert launched.module
        words = [launched.training_script, *launched.training_script_args]
        words[:1] = ["diffflow"] if words[0] == "diffflow_ext" else words[:1]
    assert words[0] == "diffflow", f"neither run nor listed in NOT_RUN: {shlex.join(words)}"
    return words[1:]


def fewer(steps: str) -> str:
    """Returns a number of training steps for tests: a thousandth, from 5 to 8."""
    return str(max(5, min(8, int(steps) // 1000)))


def shorter(words: list[str]) -> list[str]:
    """Returns a command with short trainings, small U-Nets, few samples and few data."""
    words = list(words)
    for flag, value in (("--steps", fewer), ("--n", lambda n: str(min(int(n), 60)))):
        for at in [i for i, word in enumerate(words) if word == flag]:
            words[at + 1] = value(words[at + 1])
    if words[0] == "train" and not {"--steps", "--resume", "--dry-run"} & {*words}:
        words += ["--steps", "5"]
    if words[0] == "train" and "--image-size" in words:
        words += ["--unet-base", "8", "--unet-blocks", "1", "--batch-size", "8"]
    if words[0] == "evaluate":
        words += [] if "--n" in words else ["--n", "60"]
        words += ["--ode-n", "2"]
    return words


def shorter_python(code: str) -> str:
    """Returns Python with short trainings."""
    numbers = r"(?<=\bsteps=)[\d_]{3,}|(?<=\bsteps = )[\d_]{3,}|(?<=\brange\()[\d_]{3,}(?=\))"
    return re.sub(numbers, lambda match: fewer(match[0]), code)


def run_command(words: list[str], full: bool = False) -> None:
    """Runs a command in this process and folder; what it says that it writes is there then."""
    own = own_words(words) if full else shorter(own_words(words))
    code = main(own)
    assert code == 0, f"exit code {code} of: diffflow {shlex.join(own)}"
    if "--out" in own and "--dry-run" not in own:
        assert Path(own[own.index("--out") + 1]).exists(), shlex.join(own)


def run_page(text: str, page: str, names: dict[str, Any], full: bool = False) -> None:
    """Runs the blocks of a page in their order, in this folder, with these names to begin with.

    Trainings are short, unless at full length.
    """
    for block in blocks(text):
        assert block.language in LANGUAGES, f"{page}:{block.line}: {block.language!r}"
        name = re.match(r"# (\w+\.toml)\n", block.text)
        if block.language == "toml" and name:
            Path(name[1]).write_text(block.text)
        if block.language == "sh":
            for words in filter(is_run, commands(block)):
                run_command(words, full)
        if block.language == "python":
            code = block.text if full else shorter_python(block.text)
            code = "\n" * (block.line - 1) + code
            exec(compile(code, page, "exec"), names)
