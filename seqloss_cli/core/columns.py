"""The quantities that can be asked for at each token beside its loss, each described once.

Backends, the assembler of scores, JSON, Parquet, CSV, tables, pages, the flags of the command line
and the keywords of the Python functions follow from `COLUMNS`: a new quantity is an entry here and
its computation in a backend (`backends/torch/quantities.py`). Alternatives, lists in the place of
numbers, have code of their own in most of these.

Nothing heavy is imported: the command line declares its flags from this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

ColumnKind = Literal["whole", "real", "alternatives", "internal"]
"""A whole number or a float64 for each token; a list of K tokens with their log-probabilities; or
arrays that no output shows as they are."""


@dataclass(frozen=True, slots=True)
class TokenColumn:
    """One quantity at each token: its names in every output, and how it is asked for."""

    name: str
    """The key in JSON rows and in `SequenceScore.columns`."""
    flag: str
    """The option that asks for it, such as `--ranks`."""
    kind: ColumnKind
    csv: str = ""
    """Name of its column in CSV and on pages: of one token. Empty where no cell can hold it, and
    needed, as `header` and `page_key` are, for whole and real numbers."""
    header: str = ""
    """Head of its column in tables."""
    page_key: str = ""
    """Key of its values in the data of a page: short, as a page holds tens of thousands."""
    power: int = 0
    """Power of nats: 1 for an entropy, 2 for a variance of losses, 0 for a plain number."""
    help: str = ""
    """The flag's help."""
    arrays: tuple[str, ...] = ()
    """Names of its arrays in `SequenceScore.columns`, where it is not one called `name`."""
    optional_arrays: tuple[str, ...] = ()
    """Names of arrays that are there only where they mean something."""
    is_standard: bool = False
    """Run records name it where it was not asked for, too, and pages that lack it say so. False
    for what came after the first release: --resume compares records with those of older files."""

    @property
    def option(self) -> str:
        """The flag as a parameter: `--top-k` is `top_k`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def unit(self) -> str:
        """`nats`, `nats²`, or nothing."""
        return ("", "nats", "nats²")[self.power]

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays that hold it."""
        return self.arrays or (self.name,)


# The order is that of the keys of JSON and of the columns of every table: programs read both.
COLUMNS = (
    TokenColumn(
        name="ranks",
        flag="--ranks",
        kind="whole",
        csv="rank",
        header="rank",
        page_key="r",
        help="Rank of each token: 1 is the model's favourite.",
        is_standard=True,
    ),
    TokenColumn(
        name="entropies",
        flag="--entropy",
        kind="real",
        csv="entropy",
        header="entropy",
        page_key="e",
        power=1,
        help="Entropy of the model's distribution at each token.",
        is_standard=True,
    ),
    TokenColumn(
        name="varentropies",
        flag="--varentropy",
        kind="real",
        csv="varentropy",
        header="varentropy",
        page_key="varentropy",
        power=2,
        help="Variance of the loss under the model's distribution at each token.",
    ),
    TokenColumn(
        name="top_logprobs",
        flag="--top-k",
        kind="alternatives",
        header="alternatives",
        power=1,
        help="Alternatives at each token with their log-probabilities.",
        arrays=("top_ids", "top_log_probs"),
        is_standard=True,
    ),
)
"""Quantities that users can ask for, in the order of keys and columns."""

WORD_BOUNDARIES = TokenColumn("word_boundary_log_probs", "--word-correction", "internal")
"""Log-probabilities of word boundaries: N + 1 x 3, the last row for what follows the last token."""
MEAN_LOG_PROB = TokenColumn("mean_log_prob", "--label-smoothing", "internal")
"""Mean of the log-probabilities of all ids of the vocabulary, for a smoothed reference."""
DIVERGENCES = TokenColumn(
    "kls",
    "--teacher",
    "internal",
    arrays=(
        *("kls", "teacher_losses", "teacher_entropies", "same_top1"),
        *("reverse_kls", "jensen_shannons", "total_variations", "top_k_overlaps"),
    ),
    # Where a teacher is known in part, and where the heads are of different widths.
    optional_arrays=(
        *("kls_at_most", "reverse_kls_at_most", "jensen_shannons_at_most"),
        *("total_variations_at_most", "student_cut", "teacher_cut"),
        # Where several models are compared: the arrays have a column for each then.
        "student_losses",
    ),
)
"""A teacher's losses and entropies, and the model's divergence from it."""
SAVED_TEACHER = TokenColumn(
    "saved_teacher",
    "--save-teacher",
    "internal",
    # Not `top_ids`: those are the model's own, wherever they are.
    arrays=(
        "teacher_top_ids",
        "teacher_top_log_probs",
        "teacher_rest_log_prob",
        "teacher_rest_p_log_p",
        "kls_in_part",
    ),
)
"""The part of a teacher's distributions that a file keeps, and the divergence that it gives."""

LOGIT_SHAPE = TokenColumn(
    "logit_shape",
    "--model",
    "internal",
    arrays=("log_normalisers", "tempered_log_sums", "top_logits"),
)
"""Logits as far as temperature and truncation go by them: ln Σ exp(z), ln Σ exp(z / T) at each
of `TEMPERATURES`, and the greatest logits."""
TEMPERATURES = tuple(math.exp(0.16 * n) for n in range(-10, 8))
"""From 0.2 to 3.06, so near to each other that a cubic spline over ln T errs by about 1e-5 nats
between them (a test says so). 1 is among them."""
N_TOP_LOGITS = 128
"""Greatest logits that are kept: top-k beyond it is not told from other truncations."""


def cell_columns(columns: Iterable[TokenColumn] = COLUMNS) -> Iterator[TokenColumn]:
    """The columns with one number for each token."""
    return (column for column in columns if column.kind in ("whole", "real"))
