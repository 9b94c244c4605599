"""The command that fills in missing values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from diffflow_ext.data.masks import hidden_half
from diffflow_ext.training.config.rules import SEED, Maybe, Section, whole
from diffflow_ext.training.evaluation.filling import check_imputation
from diffflow_ext.training.evaluation.given import parse_given
from diffflow_ext.training.evaluation.loaded_run import LoadedRun, load_run
from diffflow_ext.training.evaluation.run_data import rows_of_run, warn_of_doubts
from diffflow_ext.training.evaluation.sample_file import check_target, endings, write_samples
from diffflow_ext.training.parallel.distributed import joined

from .flags import DeviceName, RunArgument, Sampler
from .training import Switch


@dataclass(frozen=True)
class Impute(Section):
    """Draw missing values of rows, or a half of images, given the rest."""

    op: ClassVar[str] = "impute"
    #: The run directory, or an example (see: diffflow data list); images need a run that was
    #: trained with --condition masks.
    run: RunArgument
    #: A table with empty cells and the columns of the run, in any order and others beside them; or
    #: images.
    data: Annotated[Positional[str], arg(metavar="DATA")]
    #: A .npy or .csv file of the columns of the run; for images .npz or .npy, bytes of shape
    #: (n, H, W, C). Several copies of the rows follow one another.
    out: Annotated[str, arg(metavar="FILE")]
    #: Number of copies.
    n: Annotated[int, whole(1)] = 1
    #: The half of images that is drawn.
    hide: Maybe[Literal["top", "bottom", "left", "right"]] = None
    #: Candidates of each row, of a run that was trained without masks; None takes 256.
    candidates: Annotated[Maybe[int], whole(2)] = None
    #: What all rows are conditioned on, such as cut=Ideal,price=500; None takes their own columns.
    given: Annotated[Maybe[str], arg(metavar="NAME=VALUE")] = None
    #: Array to read from an .npz file with several.
    key: Annotated[Maybe[str], arg(metavar="NAME")] = None
    #: Seed.
    seed: Annotated[int, SEED] = 0
    #: Replace an existing file.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"
    sampler: Sampler = field(default_factory=Sampler)

    def __call__(self) -> int:
        """Draws and writes; returns the exit code."""
        with joined(self.device) as world:
            run = load_run(self.run, self.device)
            self._check(run)
            if not world.writes:
                return 0
            opened = rows_of_run(
                run, self.data, self.key, conditions=self.given is None, gaps=True
            )
            warn_of_doubts(self.data, opened)
            rows = opened.values
            columns, copies, _ = run.completed(
                self._halves(rows) if isinstance(rows, Tensor) else rows,
                self.n,
                given=None if self.given is None else parse_given(self.given),
                candidates=self.candidates,
                seed=self.seed,
                options=self.sampler.options(),
            )
        write_samples(self.out, torch.cat(copies), columns)
        count, what = len(copies[0]), "rows" if columns else "images"
        print(f"{self.out}: {self.n} x {count:,} {what}, what was missing drawn")
        return 0

    def _check(self, run: LoadedRun) -> None:
        """Refuses, before any work, files and flags that do not suit the run."""
        check_target(
            self.out, endings(run.record.encoding), overwrite=self.overwrite, source=self.data
        )
        check_imputation(run.record, self.candidates, {})
        if run.record.is_image != (self.hide is not None):
            expected = "a half, such as bottom" if run.record.is_image else "none"
            why = "images in files have no gaps" if run.record.is_image else "rows have gaps"
            raise ValueError(
                f"impute: hide={self.hide!r}: expected {expected}, because {why}; "
                f"{'give --hide' if run.record.is_image else 'leave it out'}"
            )

    def _halves(self, images: Tensor) -> Tensor:
        """Returns images with NaN in the hidden half."""
        hidden = hidden_half(str(self.hide), *images.shape[2:])
        return torch.where(hidden, torch.nan, images.float())
