"""Loss masks: the tokens that a training loss falls on by our labels, a trainer's and a user's.

Works on sequences, with losses or without; loads nothing and prints nothing. A label mask is a
loss mask in a trainer's form: the id where the loss counts, -100 elsewhere, unshifted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from seqloss_cli.core.records import Rejected, Sample, SequenceScore, TokenSequence
from seqloss_cli.metrics.totals import SumRecord, Totals, totals_of
from seqloss_cli.tokenization.labels import Finding, Labels, compare_labels
from seqloss_cli.tokenization.trl import TrainerLabels, TrlTrainer
from seqloss_cli.tokenization.vocabulary import Vocabulary

FindLabels = Callable[[Sample | Rejected], Labels | Rejected]
"""Returns the labels of an input, or why there are none. Called once for each input, in order."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A sequence with its loss mask, and how the labels of others differ from it."""

    sequence: TokenSequence
    score: SequenceScore | None
    """None where no losses were asked for."""
    trainer: TrainerLabels | None = None
    trainer_findings: tuple[Finding, ...] = ()
    """Differences of the trainer's labels from ours."""
    checked: bool = False
    """The user gave labels for it."""
    findings: tuple[Finding, ...] = ()
    """Differences of the user's labels from ours."""

    @property
    def sample(self) -> Sample:
        """The input that the sequence was made of."""
        return self.sequence.sample


@dataclass(frozen=True, slots=True)
class MaskTotals(SumRecord):
    """Counts and losses over sequences."""

    n_sequences: int = 0
    """Sequences: inputs that were not rejected."""
    n_tokens: int = 0
    n_counted: int = 0
    """Tokens that the loss falls on."""
    n_checked: int = 0
    """Sequences whose labels were compared."""
    n_different: int = 0
    """Checked sequences with a finding."""
    findings: Mapping[str, int] = field(default_factory=dict)
    """Kind of finding to the number of sequences that have it."""
    n_trainer_different: int = 0
    """Sequences that the trainer labels otherwise."""
    n_not_trained: int = 0
    """Sequences that the trainer drops or stops at."""
    trainer_findings: Mapping[str, int] = field(default_factory=dict)
    """Kind of finding in the trainer's labels to the number of sequences."""
    responses: Totals | None = None
    """Losses of the tokens that count."""
    all_tokens: Totals | None = None
    """Losses of all tokens, as if nothing were masked."""

    @property
    def prompt_share(self) -> float | None:
        """Share of prompt tokens among those that a trainer learns from which masks nothing."""
        if self.all_tokens is None or self.responses is None or not self.all_tokens.n_scored:
            return None
        return 1 - self.responses.n_scored / self.all_tokens.n_scored


def mask_maker(
    vocabulary: Vocabulary, trainer: TrlTrainer | None, find_labels: FindLabels | None
) -> Callable[[TokenSequence | SequenceScore | Rejected], Mask | Rejected]:
    """Return what makes a mask or a rejection of each entry, compared with the labels there are.

    It is to be called for each input once, in order, where there is `find_labels`.
    """
    is_control = {*vocabulary.special}.__contains__

    def compare(sequence: TokenSequence, labels: Labels | None) -> tuple[Finding, ...]:
        if labels is None:
            return ()
        return tuple(compare_labels(sequence, labels, vocabulary.name_token, is_control))

    def make(entry: TokenSequence | SequenceScore | Rejected) -> Mask | Rejected:
        if isinstance(entry, Rejected):
            # The user's labels come in the inputs' order: those of this one are passed over.
            if find_labels is not None:
                find_labels(entry)
            return entry
        score = entry if isinstance(entry, SequenceScore) else None
        sequence = entry.sequence if isinstance(entry, SequenceScore) else entry
        theirs = None if trainer is None else trainer.labels(sequence.sample)
        found = None if find_labels is None else find_labels(sequence.sample)
        if isinstance(found, Rejected):
            return found
        differences = () if theirs is None else compare(sequence, theirs.labels)
        checked = found is not None
        return Mask(sequence, score, theirs, differences, checked, compare(sequence, found))

    return make


def mask_totals(mask: Mask) -> MaskTotals:
    """Return the counts and losses of one sequence."""
    score, trainer = mask.score, mask.trainer
    return MaskTotals(
        n_sequences=1,
        n_tokens=mask.sequence.n_tokens,
        n_counted=int(mask.sequence.loss_mask.sum()),
        n_checked=int(mask.checked),
        n_different=int(bool(mask.findings)),
        findings=_kinds(mask.findings),
        n_trainer_different=int(bool(mask.trainer_findings)),
        n_not_trained=int(trainer is not None and trainer.labels is None),
        trainer_findings=_kinds(mask.trainer_findings),
        responses=None if score is None else totals_of(score),
        all_tokens=None if score is None else totals_of(unmasked(score)),
    )


def unmasked(score: SequenceScore) -> SequenceScore:
    """Return the same losses, all of which count."""
    everywhere = np.ones(score.sequence.n_tokens, dtype=bool)
    return replace(
        score, sequence=replace(score.sequence, loss_mask=everywhere, prompt_boundary=None)
    )


def _kinds(findings: tuple[Finding, ...]) -> Mapping[str, int]:
    return {finding.kind: 1 for finding in findings}
