"""Runs that are given to others: a folder, or a repository of the Hugging Face Hub.

    FOLDER/README.md  FOLDER/config.toml  FOLDER/evaluation.json
    FOLDER/checkpoints/step-00002000/{manifest.json,ema.safetensors}

What is shared is a run directory without what only training needs: weights that are not averaged,
the state of the optimiser, the log. No path of this machine is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from diffflow_ext.data import describe_sets
from diffflow_ext.data.display import title_of
from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.core import build_info

from ..config.fields import Config
from ..config.files import to_record, to_toml
from ..recipes.base import Recipe
from ..store.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from ..store.dataset import DatasetRecord
from ..store.directory import RunDirectory, explained, replace_text
from ..store.examples import is_example
from .card import model_card
from .hub import download, push
from .table import read_evaluation, spell

R = TypeVar("R", bound="Shareable")


class Shareable:
    """What a loaded run has for sharing: the names of huggingface_hub's mixin for models."""

    recipe: Recipe[Any, Any]
    config: Config
    record: DatasetRecord
    step: int
    folder: Path | None

    @property
    def parameters(self) -> int:
        """How many numbers the model has learned."""
        return sum(value.numel() for value in self.recipe.module.parameters())

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, description: str = ""
    ) -> None:
        """Writes a copy of the run to give away, with a model card, README.md.

        It is a run directory, which `load_run` and all commands take; samples and densities are
        those of this run to the bit. It has no state of the training, which can't go on from it.
        The numbers of evaluation.json are in the card if the run has been evaluated.

        No row of the data is in it, and no path. Their name, ranges, means, the names of columns,
        the values of categories and a hash are: see docs/sharing.md.

        Arguments:
            folder: A new or empty folder.
            license: The licence of the model, by its identifier at the Hub, such as "mit" or
                "cc-by-4.0"; None for none. It is yours to choose, and to name that of the data.
            description: What you have to say of it, in Markdown, for the model card.

        Raises:
            ValueError: If the folder isn't empty, the license has no such form, or the run's
                evaluation.json isn't one of `evaluate`.
            TypeError: If the description is no text.
            OSError: If the folder can't be written to.
        """
        if not isinstance(description, str):
            raise TypeError(
                f"save_pretrained: expected a text as description, got {in_words(description)};"
                " leave it out for none"
            )
        config, record = _without_paths(self.config, self.record)
        evaluation = self._evaluation()
        card = model_card(
            config, record, self.step, self.parameters, evaluation, license, description
        )
        target = RunDirectory(folder)
        with explained(target.root):
            target.make_writable()
            _require_empty(target)
            save_checkpoint(target.checkpoints, self._checkpoint(config, record))
            (target.checkpoints / "latest").unlink()
            replace_text(target.root / "README.md", card)
            replace_text(target.config, to_toml(config))
            if evaluation is not None:
                replace_text(target.evaluation, spell(evaluation))

    def push_to_hub(
        self, repo_id: str, *, license: str | None = None, description: str = "", **options: Any
    ) -> str:
        """Writes the files of `save_pretrained` into a repository of the Hugging Face Hub.

        The repository is created if it's missing. A run that is there is replaced, and stays in
        the history of the repository.

        Arguments:
            repo_id: The repository, "OWNER/NAME".
            license: As of `save_pretrained`.
            description: As of `save_pretrained`.
            options: Those of ``huggingface_hub.ModelHubMixin.push_to_hub``, such as
                ``private=True``, ``token``, ``branch``, ``commit_message`` and ``create_pr``.

        Returns:
            The address of the commit.

        Raises:
            ImportError: If huggingface_hub is missing.
            ValueError: As of `save_pretrained`, or if the name has another form.
            OSError: If the Hub refuses or can't be reached.
        """

        def write(folder: Path) -> None:
            self.save_pretrained(folder, license=license, description=description)

        return push(write, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls: type[R], name: str | Path, *, device: str = "cpu", **options: Any
    ) -> R:
        """Returns a run that was shared, ready to sample.

        Arguments:
            name: A folder, of `save_pretrained` or any run, or a repository of the Hugging Face
                Hub, "OWNER/NAME", which `push_to_hub` has written. A folder comes first.
            device: "auto", "cpu", "cuda" or "cuda:INDEX".
            options: Of a repository those of ``huggingface_hub.snapshot_download``:
                ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only``.

        Raises:
            ImportError: If huggingface_hub is missing, or a package that the model needs.
            OSError: If the Hub can't be reached, or there is no such repository, or no run in it.
            CheckpointError: If the run is damaged or of a newer version.
            ValueError: If there is no run in the folder.
        """
        if isinstance(name, Path) or is_example(name) or Path(name).is_dir():
            return cls._of_folder(name, device)
        folder = download(name, **options)
        try:
            return cls._of_folder(folder, device)
        except (CheckpointError, ValueError) as error:
            raise CheckpointError(
                f"from_pretrained: expected a whole run in {name!r}, got: {error}. If the download"
                " broke, force_download=True gets another; else ask who shared it"
            ) from error

    @classmethod
    def _of_folder(cls: type[R], folder: str | Path, device: str) -> R:
        raise NotImplementedError

    def _checkpoint(self, config: Config, record: DatasetRecord) -> Checkpoint:
        """Returns the averaged weights alone, with what `load_run` needs."""
        meta = {
            "package": build_info()["version"],
            "config": to_record(config),
            "seed": config.run.seed,
            "data": record.to_meta(),
        }
        return Checkpoint(self.step, {}, self.recipe.module.state_dict(), {}, meta)

    def _evaluation(self) -> Mapping[str, Any] | None:
        """Returns the numbers of evaluation.json, if they are those of this step."""
        if self.folder is None:
            return None
        found = read_evaluation("save_pretrained", RunDirectory(self.folder))
        if found is None or found["step"] != self.step:
            return None
        return {**found, "data": title_of(found["data"])}


def _require_empty(target: RunDirectory) -> None:
    others = target.others()
    if others:
        raise ValueError(
            f"save_pretrained: expected a new or empty folder, got {str(target.root)!r} with"
            f" {', '.join(others[:3])}; name another, or empty it"
        )


def _without_paths(config: Config, record: DatasetRecord) -> tuple[Config, DatasetRecord]:
    """Returns both without the path of data in files; names of known sets stay."""
    is_known = config.data.data.strip().lower().replace("_", "-") in describe_sets()
    config = config.replaced(data=config.data.data if is_known else "")
    return config, replace(record, name=title_of(record.name))
