r"""The base of density estimators: rows in, a run trained in a temporary folder, densities out.

With :math:`p` the density of a trained model in the units of X, `score_samples` returns
:math:`\log p(x_i)` in nats and `score` their mean :math:`\frac{1}{n} \sum_i \log p(x_i)`.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffflow_ext.data import Dataset
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.formats.columns import listed, plain_name
from diffflow_ext.data.formats.frames import as_pandas, is_frame
from diffflow_ext.data.formats.tables import MIN_ROWS
from diffflow_ext.training.config.fields import Config
from diffflow_ext.training.config.files import to_toml
from diffflow_ext.training.evaluation.loaded_run import LoadedRun, run_of
from diffflow_ext.training.loop.session import Interrupted, threads
from diffflow_ext.training.loop.train import train
from diffflow_ext.training.parallel.progress import show_progress
from diffflow_ext.training.store.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffflow_ext.training.store.dataset import open_data, recorded
from diffflow_ext.training.store.directory import MetricsLog, RunDirectory, read_metrics
from diffflow_ext.training.store.runs import read_run

from .parameters import configuration, parameters_of, plain, seed_of
from .targets import beside, conditioned, given_rows, given_samples

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "diffflow_ext.estimators: expected scikit-learn 1.6 or newer to be installed, got:"
        f" {error}; pip install 'diffflow_ext[sklearn]'",
        name="sklearn",
    ) from error

Rows = NDArray[np.float64]
E = TypeVar("E", bound="DensityEstimator")


@dataclass(kw_only=True, eq=False, repr=False)
class DensityEstimator(DensityMixin, BaseEstimator):
    """What the estimators of all models share.

    Arguments:
        steps: Training steps, one batch each.
        batch_size: Rows in a batch; None for the model's default, here and below.
        learning_rate: The highest learning rate.
        width: Units in a layer of the networks.
        depth: Hidden layers of the networks after the first.
        options: Any other fields of the model's configuration by their names, which
            ``diffflow train MODEL --help`` lists: ``{"warmup": 100}``. Not those about data.
        device: "auto", "cpu", "cuda" or "cuda:INDEX", for training and for what follows.
        threads: CPU threads, for training and for what follows; None for torch's number.
        random_state: The seed of training, the field `seed`: the same number and data give the
            same bits on one CPU. Or a RandomState, or None for NumPy's global one, from which each
            `fit` draws a seed.
        verbose: Whether to show how far training, scores and samples are, and what was read.
        conditional: Whether the density is that of X given y. If not, y is ignored, as other
            density estimators of scikit-learn do, to which a Pipeline passes y.

    Attributes:
        n_features_in_: The number d of columns.
        feature_names_in_: The names of columns, if X was a data frame.
        checkpoint_: The trained state in the CPU's memory, a `training.Checkpoint`.
        history_: Losses and more by step, a list of dictionaries as in metrics.jsonl.
        run_: The :class:`diffflow_ext.training.LoadedRun`, which has other estimators of the
            likelihood and the options of the sampler.
    """

    _model: ClassVar[str]

    steps: int = 2000
    batch_size: int | None = None
    learning_rate: float | None = None
    width: int | None = None
    depth: int | None = None
    options: Mapping[str, Any] | None = None
    device: str = "auto"
    threads: int | None = None
    random_state: int | np.random.RandomState | None = None
    verbose: int = 0
    conditional: bool = False

    def fit(self: E, X: Any, y: Any = None) -> E:
        """Trains the model on rows; a fit that fails leaves the estimator without one.

        Arguments:
            X: Rows, an array of real numbers or a data frame, which may have texts, truth values
                and categories too, shape (n, d), n at least 20. A tenth of them each is put aside
                for validation and test, and isn't trained on. Columns of numbers are continuous
                unless `options` has their kinds as `columns`, so that scores of different rows
                compare; `missing` in it is for missing numbers.
            y: With `conditional` what the density is conditioned on: numbers, classes or texts,
                shape (n,) or (n, k), or a series or data frame. Their kinds are found in their
                values, unless `options` has them as `columns`: texts and truth values are classes,
                and so are two values, or up to 100 of which each has ten rows on average.
                Otherwise ignored.

        Returns:
            The estimator.

        Warns:
            UserWarning: If a column has no density, such as a copy of another.

        Raises:
            ValueError: If there are too few rows, a column tells nothing of a row, such as a
                constant one, a value isn't finite, a parameter isn't allowed, or y is missing or
                has another length.
            TypeError: If a parameter has the wrong type.
            TrainingError: If the loss or its gradient isn't finite.
            KeyboardInterrupt: After SIGINT or SIGTERM.
        """
        for name in ("checkpoint_", "history_", "_run"):
            self.__dict__.pop(name, None)
        config = configuration(self._model, self.get_params(deep=False))
        rows = self._frame(X, gaps=config.data.missing == "mask", reset=True)
        _check_rows(rows)
        config, rows = self._with_targets(config, rows, y)
        data = open_data(config, rows)
        _check_columns(rows, data)
        self.checkpoint_, self.history_ = _trained(config, data, self.verbose > 0)
        return self

    def _with_targets(self, config: Config, rows: Any, y: Any) -> tuple[Config, Any]:
        """Returns the configuration and the rows with y as a condition, if there is one."""
        if not self.conditional:
            return config, rows
        import pandas

        targets = beside(rows, y)
        return conditioned(config, targets), pandas.concat([rows, targets], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.target_tags.required = self.conditional
        return tags

    def _frame(self, X: Any, *, gaps: bool, reset: bool = False) -> Any:
        """Returns rows as a data frame; columns without names are x1, x2 and so on."""
        import pandas

        options: dict[str, Any] = {"ensure_all_finite": "allow-nan" if gaps else True}
        X = as_pandas(X) if is_frame(X) else X
        names = None if reset else pandas.Index(recorded(self.checkpoint_)[0].columns)
        rows: Any = X
        if not is_frame(X):
            X = validate_data(self, rows, reset=reset, dtype=np.float64, **options)
            unnamed = pandas.Index([f"x{i + 1}" for i in range(X.shape[1])])
            return pandas.DataFrame(X, columns=unnamed if names is None else names)
        # scikit-learn has checks of numbers alone; `train` checks the other kinds of columns.
        is_numeric = all(getattr(kind, "kind", None) in [*"fiuc"] for kind in X.dtypes)
        more: dict[str, Any] = {"skip_check_array": True}
        if is_numeric:
            more = {"dtype": "numeric", **options}
        validate_data(self, rows, reset=reset, **more)
        by_place = names is not None and not hasattr(self, "feature_names_in_")
        return X.set_axis(names, axis=1) if by_place else X

    @property
    def run_(self) -> LoadedRun:
        """The trained model on the device of the estimator."""
        check_is_fitted(self, "checkpoint_")
        device, run = self.__dict__.get("_run", (None, None))
        if run is None or device != self.device:
            run = run_of(self.checkpoint_, self.device, type(self).__name__)
            self._run = (self.device, run)
        return run

    @contextlib.contextmanager
    def _session(self) -> Iterator[None]:
        """Sets the number of threads, and whether progress is shown."""
        shown = None if self.verbose else False
        with threads(plain(self.threads)), show_progress(shown):
            yield

    @property
    def _conditions(self) -> Conditions | None:
        """What the fitted density is conditioned on."""
        check_is_fitted(self, "checkpoint_")
        return recorded(self.checkpoint_)[0].conditions

    def score_samples(self, X: Any, y: Any = None) -> Rows:
        r"""Returns :math:`\log p(x_i)` of each row in the units of X, in nats, shape (n,).

        It is the density of the model's probability-flow ODE, computed in float32.

        Arguments:
            X: Rows, shape (n, d), of a data frame with the names and order of columns of `fit`.
            y: Of a conditional density what the rows are given, as in `fit`: it returns
                :math:`\log p(x_i | y_i)`.

        Warns:
            UserWarning: If numbers of y lie far outside of those of `fit`.

        Returns:
            Densities, or probabilities where a column is discrete: bounds with one draw of noise,
            which depends on a row's place (see `data.encoding`).

        Raises:
            NotFittedError: If `fit` wasn't called.
            ValueError: If a shape, a column or a value is wrong, or a class is new.
        """
        conditions = self._conditions
        rows = self._frame(X, gaps=recorded(self.checkpoint_)[1].data.missing == "mask")
        given = given_rows("score_samples", conditions, y, rows)
        with self._session():
            return self.run_.log_prob(rows, given=given).numpy()

    # scikit-learn's own returns nothing.
    def score(self, X: Any, y: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        r"""Returns the mean log-density :math:`\frac{1}{n} \sum_i \log p(x_i)`, higher is better.

        It is the mean as of scikit-learn's GaussianMixture, not the sum as of its KernelDensity:
        scores of folds of different sizes compare.

        Arguments:
            X: Rows, shape (n, d); errors are those of `score_samples`.
            y: Of a conditional density what the rows are given, otherwise ignored.
        """
        return float(self.score_samples(X, None if self._conditions is None else y).mean())

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        y: Any = None,
        guidance: float | None = None,
    ) -> Any:
        """Returns samples in the units of X, float64 of shape (n_samples, d).

        If X had columns of texts it is a data frame with their names, types and categories.

        Arguments:
            n_samples: The number of samples, at least 1.
            random_state: The seed: the same number gives the same samples, each of which depends
                on its index, the seed and its y alone. By default a seed is drawn from NumPy's
                state.
            y: Of a conditional density what the samples are given: one value for all, a mapping of
                names of columns to values for all, or a row for each sample.
            guidance: Of a conditional density the weight of the condition, see `LoadedRun.sample`.

        Raises:
            NotFittedError: If `fit` wasn't called.
            ValueError: If a number isn't in its range, the samples don't fit in memory, or y is
                missing, has another length or a new class.
        """
        conditions, n = self._conditions, plain(n_samples)
        options: dict[str, Any] = {"seed": seed_of(random_state)}
        options["given"] = given_samples("sample", conditions, y, n)
        if guidance is not None:
            options["guidance"] = plain(guidance)
        with self._session():
            encoding = self.run_.record.encoding
            if encoding is not None and encoding.texts:
                return self.run_.sample_frame(n, **options)[[*encoding.names]]
            return self.run_.sample(n, **options).numpy()

    def save(self, path: str | Path) -> None:
        """Writes the folder of a run, for `load`, `load_run` and the program `diffflow`.

        It holds a configuration in TOML, tensors in safetensors and checksums in JSON; no pickle.

        Raises:
            NotFittedError: If `fit` wasn't called.
            ValueError: If the folder holds a run or files that a run would replace.
            OSError: If it can't be written to.
        """
        check_is_fitted(self, "checkpoint_")
        run = RunDirectory(path)
        with run.opened():
            if run.holds_run() or run.foreign():
                raise ValueError(
                    f"save: expected a new folder, got {str(path)!r}, which holds a run or its"
                    " files; choose another, or delete them"
                )
            save_checkpoint(run.checkpoints, self.checkpoint_)
            with MetricsLog(run.metrics, 0) as log:
                for line in self.history_:
                    log.write(line)
            run.begin(to_toml(recorded(self.checkpoint_)[1]))

    @classmethod
    def load(cls: type[E], path: str | Path) -> E:
        """Returns the fitted estimator of a run, trained by `fit`, `train` or the program.

        Its parameters are those that the run was trained with; its columns have names, unless
        these are x1, x2 and so on, which rows without names get.

        Raises:
            ValueError: If there is no run, or one of another model or of images.
            CheckpointError: If it has no whole checkpoint.
        """
        import pandas

        checkpoint = read_run(path)
        record, config = recorded(checkpoint)
        if record.conditions is not None and record.conditions.masks is not None:
            raise ValueError(
                f"load: expected a run without masks, got {str(path)!r}, which was trained with"
                " condition='masks'; load it by load_run"
            )
        if config.name != cls._model or record.is_image:
            of = "images" if record.is_image else "rows"
            raise ValueError(
                f"load: expected a run of {cls._model} and rows, got {str(path)!r} of"
                f" {config.name} and {of}; load it by the class of its model, or by load_run"
            )
        estimator = cls(**parameters_of(config, {field.name for field in fields(cls)}))
        estimator.checkpoint_ = checkpoint
        estimator.history_ = read_metrics(RunDirectory(path).metrics)
        count = len(record.columns)
        unnamed = record.columns == tuple(f"x{i + 1}" for i in range(count))
        row: Any = np.zeros((1, count))
        if not unnamed:
            row = pandas.DataFrame(row, columns=np.asarray(record.columns, dtype=object))
        validate_data(estimator, row, skip_check_array=True)  # Notes the columns.
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the model, which is made of the checkpoint again, on any device."""
        state = dict(super().__getstate__())
        state.pop("_run", None)
        return state


def _trained(config: Config, data: Any, progress: bool) -> tuple[Checkpoint, list[dict[str, Any]]]:
    """Trains in a temporary folder; returns the last checkpoint and the log."""
    with tempfile.TemporaryDirectory(prefix="diffflow-") as folder:
        run = RunDirectory(Path(folder) / "run")
        try:
            result = train(config, run.root, data=data, progress=progress)
        except Interrupted as error:
            # Its own message names what was saved in the folder.
            name = signal.Signals(error.signum).name
            raise KeyboardInterrupt(f"fit: stopped by {name}; nothing is kept") from None
        return load_checkpoint(result.checkpoint), read_metrics(run.metrics)


def _check_rows(rows: Any) -> None:
    """Refuses too few rows and constant columns of numbers."""
    if len(rows) < MIN_ROWS:
        raise ValueError(
            f"fit: expected at least {MIN_ROWS} rows, got X with n_samples={len(rows)} and"
            f" n_features={rows.shape[1]}; collect more: a density cannot be learned from so few"
        )
    numbers = rows.select_dtypes("number")
    constant = [*map(str, numbers.columns[numbers.nunique(dropna=False) == 1])]
    if constant:
        raise ValueError(
            f"fit: expected columns that vary, got constant ones ({listed(constant)}), which have"
            " no density; leave them out of X"
        )


def _check_columns(rows: Any, data: Dataset) -> None:
    """Refuses columns that a run would leave out."""
    given = () if data.conditions is None else data.conditions.names
    names = [plain_name(name) for name in rows.columns if plain_name(name) not in given]
    left_out = [name for name in names if name not in data.columns]
    if left_out:
        raise ValueError(
            f"fit: expected columns that tell something of a row, got {listed(left_out)}, which"
            f" would be left out: {'; '.join(data.notes)}; leave them out of X"
        )
