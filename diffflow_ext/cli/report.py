"""The command that writes a report of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from diffflow_ext.training.config.rules import Maybe, Section
from diffflow_ext.training.evaluation.report import report_page
from diffflow_ext.training.evaluation.sample_file import check_target
from diffflow_ext.training.store.directory import replace_text

from .flags import DeviceName, RunArgument
from .training import Switch


@dataclass(frozen=True)
class Report(Section):
    """Write a page about a run: its curve, samples, log p, evaluation and configuration."""

    op: ClassVar[str] = "report"
    #: The run directory, which isn't changed.
    run: RunArgument
    #: A .html file, which needs no other one.
    out: Annotated[str, arg(metavar="FILE")]
    #: Where the data are now, if they have moved.
    data: Annotated[Maybe[str], arg(metavar="PATH")] = None
    #: Replace an existing file.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"

    def __call__(self) -> int:
        """Computes and writes; returns the exit code."""
        check_target(self.out, (".html",), overwrite=self.overwrite)
        page = report_page(self.run, self.data, self.device)
        replace_text(Path(self.out), page)
        print(f"{self.out}: a report of {self.run}")
        return 0
