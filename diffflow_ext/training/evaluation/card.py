"""The model card of a run: what it is, what it has of the data, how good it is, how to load it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from diffflow_ext.data.display import COLUMN_HEAD, MOST_ROWS, column_rows
from diffflow_ext.functional.core import build_info

from ..config.fields import Config
from ..config.files import to_toml
from ..store.dataset import DatasetRecord
from .table import format_table, with_nans

LIBRARY = "diffflow_ext"
LINE = 99  # letters in a line of text
#: What the Hub finds the model by, besides the library, the model and the kind of data.
TAGS = ("generative-model", "density-estimation")
#: Where the models are from, at arXiv.
PAPERS = {
    "diffflow": "2110.07579",
    "dinof": "2309.01274",
    "nfdm": "2404.12940",
    "ddpm": "2006.11239",
    "ffjord": "1810.01367",
}
#: Identifiers of licences of the Hub.
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

GIVEN_AWAY = (
    "These files hold no row of the data. They do hold their name and shape; for each column its"
    " name and what scales it, which are its mean and deviation or its bounds{ends}; the values of"
    " each category, with their shares; the names of classes; and a hash by which the same data"
    " are recognised. A model may also have learned single rows by heart, and then samples come"
    " close to them."
)
ENDS = ", and the smallest and the largest value in training"
NOT_EVALUATED = (
    "It has not been evaluated. `diffflow evaluate FOLDER --out RESULTS` does so, given the data."
)
USE = """\
```python
from diffflow_ext.training import LoadedRun

run = LoadedRun.from_pretrained(".")  # the folder of these files, or the repository, "OWNER/NAME"
samples = run.sample(1000)
```

A name of the Hub needs `pip install 'diffflow_ext[hub]'`. The folder is a run directory:
`diffflow sample FOLDER --out samples.npy` and the other commands take it, too; only training can't
go on from it. Weights are in safetensors, all else is text, and loading executes nothing."""


def model_card(
    config: Config,
    record: DatasetRecord,
    step: int,
    parameters: int,
    evaluation: Mapping[str, Any] | None = None,
    license: str | None = None,
    description: str = "",
) -> str:
    """Returns a model card in Markdown, with the header in YAML that the Hub reads.

    Arguments:
        config: The configuration, without paths.
        record: The record of the data, without paths.
        step: Completed training steps.
        parameters: The number of parameters.
        evaluation: The numbers of `evaluate`; None if there are none.
        license: An identifier of the Hub, such as "mit" or "cc-by-4.0"; None for none.
        description: What the author has to say, in Markdown.

    Raises:
        ValueError: If the license has no such form.
    """
    about = (type(config).__doc__ or config.name).strip()
    paper = PAPERS.get(config.name)
    source = f" See [arXiv {paper}](https://arxiv.org/abs/{paper})." if paper else ""
    numbers = NOT_EVALUATED
    if evaluation is not None:
        table = _block(format_table(with_nans(evaluation)))
        numbers = f"By `diffflow evaluate`, on held-out data:\n\n{table}"
    parts = [
        _header(config, record, license),
        f"# {about.partition(': ')[0].rstrip('.')} of {_plain(record.name)}",
        description.strip(),
        _wrapped(
            f"{about}{source} Trained for {step:,} steps; its {parameters:,} numbers are the"
            f" exponential average of the weights. Saved by {LIBRARY} {build_info()['version']}."
        ),
        f"## Data\n\n{_data(record)}",
        f"## Training\n\n{_block(to_toml(config), 'toml')}",
        f"## Evaluation\n\n{numbers}",
        f"## Use\n\n{_use(record)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(record: DatasetRecord) -> str:
    """Returns how to draw: a table of texts is a frame, and a text file."""
    if record.encoding is None or not any(c.is_text for c in record.encoding.columns):
        return USE
    return USE.replace("run.sample(", "run.sample_frame(").replace("samples.npy", "samples.csv")


def _header(config: Config, record: DatasetRecord, license: str | None) -> str:
    """Returns the metadata in YAML, each value as JSON, which is YAML too."""
    if license is not None and not (isinstance(license, str) and LICENSE.fullmatch(license)):
        raise ValueError(
            f"save_pretrained: license={license!r}: expected an identifier such as 'mit' or"
            " 'cc-by-4.0' (huggingface.co/docs/hub/repositories-licenses), or None"
        )
    kind = "images" if record.is_image else "tabular"
    values: dict[str, Any] = {"library_name": LIBRARY, "tags": [LIBRARY, config.name, kind, *TAGS]}
    values |= {} if license is None else {"license": license}
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _data(record: DatasetRecord) -> str:
    """Returns the name and shape of the data, a table of the columns, and what is given away."""
    name, conditions = _plain(record.name), record.conditions
    given = "" if conditions is None else f", given {_plain(conditions.describe())}"
    of_condition = () if conditions is None else conditions.columns
    columns = [*(record.encoding.columns if record.encoding else ()), *of_condition]
    # Those of sets that the package draws are not known.
    told = _wrapped(GIVEN_AWAY.format(ends=ENDS if any(c.span for c in columns) else ""))
    if record.encoding is None:
        return f"{name}: images of {' x '.join(map(str, record.event_shape))}{given}.\n\n{told}"
    # Without the roles, which the line above the table says.
    rows = [row[:3] for row in column_rows(record.encoding, conditions)]
    more = len(rows) - MOST_ROWS
    rest = f"\n\nand {more:,} more columns" if more > 0 else ""
    head = [COLUMN_HEAD[:3], ("---",) * 3]
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in [*head, *rows[:MOST_ROWS]]]
    what = f"{name}: {len(record.columns):,} columns{given}."
    return "\n\n".join([what, "\n".join(lines) + rest, told])


def _wrapped(text: str) -> str:
    """Returns a text in lines, which begin at no word inside of a link's name."""
    whole = re.sub(r"\[.*?\]", lambda name: name[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, LINE, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _block(text: str, language: str = "text") -> str:
    """Returns a block of code, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _plain(text: str) -> str:
    """Returns a text in one line in which Markdown finds nothing to format."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", " ".join(text.split()))
