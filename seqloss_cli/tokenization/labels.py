"""Labels as trainers write them, and how two sets of them for one text differ, in words.

Labels stand unshifted: labels[t] belongs to input_ids[t], and is -100 where no loss counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.alignment import aligned, common_prefix, run_length
from seqloss_cli.core.records import IGNORED, Bools, Ints, TokenSequence


@dataclass(frozen=True, slots=True)
class Labels:
    input_ids: Ints
    """Shape N."""
    labels: Ints
    """Shape N."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which labels differ from ours."""

    kind: str
    """A word that scripts can match, such as `loss_on_prompt`."""
    position: int | None
    """The first token that it is about: in our sequence, or in theirs where we have none."""
    count: int
    """How many tokens it is about."""
    message: str
    """The same for people."""


def labels_of(sequence: TokenSequence) -> Labels:
    ids = sequence.token_ids
    return Labels(ids, np.where(sequence.loss_mask, ids, IGNORED))


def compare_labels(
    ours: TokenSequence,
    theirs: Labels,
    name: Callable[[int], str],
    is_control: Callable[[int], bool],
) -> list[Finding]:
    """How `theirs` differ from our sequence's labels; nothing where they say the same.

    `name` spells an id; `is_control` tells the tokens that end turns and texts. Padding at either
    end, masked, is no difference.
    """
    theirs = _without_padding(ours.token_ids, theirs)
    counted = _counted(theirs)
    comparison = _Comparison(
        ours, theirs, aligned(ours.token_ids, theirs.input_ids), name, is_control
    )
    if not counted.any():
        n = len(theirs.labels)
        cut = [f for f in comparison.missing() if f.kind == "response_truncated"]
        return [*cut, Finding("everything_masked", None, n, "every label is -100")]
    found = list(_wrong_labels(theirs))
    found += comparison.missing()
    found += comparison.extra(counted)
    found += comparison.masks(counted)
    return found


def _wrong_labels(theirs: Labels) -> Iterator[Finding]:
    """Labels that are neither -100 nor the id at their own position."""
    ids, labels = theirs.input_ids, theirs.labels
    wrong = (labels != IGNORED) & (labels != ids)
    if not wrong.any():
        return
    first, count = int(np.argmax(wrong)), int(wrong.sum())
    for step, which in ((1, "the next"), (-1, "the previous")):
        if _is_shifted(theirs, step):
            yield Finding(
                "shifted",
                first,
                count,
                f"shifted by one: labels[{first}] is {which} token's id; a model that shifts "
                "labels itself, as those of transformers do, then learns the wrong token",
            )
            return
    yield Finding(
        "wrong_labels",
        first,
        count,
        f"{count} labels are neither -100 nor the id at their position, first labels[{first}] = "
        f"{labels[first]} at id {ids[first]}",
    )


def _is_shifted(theirs: Labels, step: int) -> bool:
    """Whether labels[t] is the id at t + step wherever it counts and such a token is there."""
    ids, labels = theirs.input_ids, theirs.labels
    places = np.flatnonzero(labels != IGNORED)
    inside = places[(places + step >= 0) & (places + step < len(ids))]
    return len(inside) > 0 and bool((labels[inside] == ids[inside + step]).all())


def _counted(theirs: Labels) -> Bools:
    """Which tokens the labels count, shifted back where they were shifted."""
    counted: Bools = theirs.labels != IGNORED
    if (theirs.labels == theirs.input_ids)[counted].all():
        return counted
    for step in (1, -1):
        if _is_shifted(theirs, step):
            moved = np.zeros_like(counted)
            places = np.flatnonzero(counted) + step
            moved[places[(places >= 0) & (places < len(moved))]] = True
            moved[-1] |= step == -1 and moved[-2:-1].any()  # its label fell off the end
            return moved
    return counted


def _without_padding(ours: Ints, theirs: Labels) -> Labels:
    """Leaves out what was put before and behind to fill a batch: a masked run of one id, beyond
    what ours have there."""
    ids, masked = theirs.input_ids, theirs.labels == IGNORED
    left = run_length(ids, masked)
    if left and ids[0] == ours[0]:  # padded with BOS; one BOS before another is no padding
        left -= run_length(ours, np.ones(len(ours), dtype=bool))
        left = left if left > 1 else 0
    elif ids[left : left + 1].tolist() != ours[:1].tolist():
        left = 0
    ids, labels, masked = ids[left:], theirs.labels[left:], masked[left:]
    right = run_length(ids[::-1], masked[::-1])
    end = max(len(ids) - right, common_prefix(ours, ids))
    return Labels(ids[:end], labels[:end])


def _tokens(n: int) -> str:
    return "1 token" if n == 1 else f"{n} tokens"


@dataclass(frozen=True, slots=True)
class _Comparison:
    ours: TokenSequence
    theirs: Labels
    pairs: Ints
    """Positions of the same token in ours and theirs, ascending."""
    name: Callable[[int], str]
    is_control: Callable[[int], bool]

    @property
    def _only_ours(self) -> Ints:
        return np.setdiff1d(np.arange(self.ours.n_tokens), self.pairs[:, 0])

    @property
    def _only_theirs(self) -> Ints:
        return np.setdiff1d(np.arange(len(self.theirs.input_ids)), self.pairs[:, 1])

    def missing(self) -> Iterator[Finding]:
        """Tokens of ours that they do not have."""
        ids, mask, places, extra = (
            self.ours.token_ids,
            self.ours.loss_mask,
            self._only_ours,
            self._only_theirs,
        )
        if len(places) and places[0] == 0 and self.ours.begins_with_bos and 0 not in extra:
            yield Finding("missing_bos", 0, 1, f"no BOS {self._shown(ids, 0)} in front")
            places = places[1:]
        ends = np.array([mask[t] and self._ends_a_turn(int(t)) for t in places], dtype=bool)
        theirs_end = len(self.theirs.input_ids) - 1
        ending = places[places >= self.ours.n_tokens - len(places)]  # a run up to our end
        if theirs_end in extra:  # they go on with something else
            ending = ending[:0]
        lost = ending[mask[ending]]
        only_the_end = len(lost) == 1 and bool(ends[places == lost[0]].all())
        if len(lost) and not only_the_end:
            n, total = len(lost), int(mask.sum())
            yield Finding(
                "response_truncated",
                int(lost[0]),
                n,
                f"{n} of {total} response tokens cut off, from token {lost[0]} "
                f"{self._shown(ids, lost[0])} on; theirs have {len(self.theirs.labels)} tokens",
            )
            ends &= ~np.isin(places, ending)
        if ends.any():
            yield self._no_end(int(places[ends][0]), "is not there", int(ends.sum()))
        rest = np.setdiff1d(places[~ends], ending)
        if len(rest):
            first = int(rest[0])
            yield Finding(
                "tokens_differ",
                first,
                len(rest),
                f"not in theirs: {_tokens(len(rest))} of ours, first token {first} "
                f"{self._shown(ids, first)}; another text, template, tokenizer or seam",
            )

    def extra(self, counted: Bools) -> Iterator[Finding]:
        """Tokens of theirs that we do not have."""
        ids, places = self.theirs.input_ids, self._only_theirs
        first_two, bos = ids[:2].tolist(), self.ours.token_ids[:1].tolist()
        if self.ours.begins_with_bos and first_two == bos * 2 and len(places):
            yield Finding(
                "double_bos",
                0,
                1,
                f"begins with BOS {self._shown(ids, 0)} twice: it was added to a text that had it",
            )
            places = places[places > 1] if places[0] <= 1 else places
        last = len(ids) - 1
        if len(places) and places[-1] == last and self.is_control(int(ids[last])):
            counts = "and counts" if counted[last] else "masked"
            yield Finding(
                "extra_end",
                last,
                1,
                f"ends with {self._shown(ids, last)}, {counts}, which ours do not have (--eos adds "
                "EOS)",
            )
            places = places[:-1]
        if len(places):
            first = int(places[0])
            yield Finding(
                "extra_tokens",
                first,
                len(places),
                f"not in ours: {_tokens(len(places))} of theirs, first their token {first} "
                f"{self._shown(ids, first)}",
            )

    def masks(self, counted: Bools) -> Iterator[Finding]:
        """Tokens that both have and one of them counts."""
        ids, mask = self.ours.token_ids, self.ours.loss_mask
        at, theirs = self.pairs[:, 0], counted[self.pairs[:, 1]]
        too_much = at[theirs & ~mask[at]]
        after = np.array([self._is_after_a_response(int(t)) for t in too_much], dtype=bool)
        for kind, places, what in (
            ("loss_on_prompt", too_much[~after], "of the prompt"),
            ("loss_on_template", too_much[after], "after the response"),
        ):
            if len(places):
                first = int(places[0])
                yield Finding(
                    kind,
                    first,
                    len(places),
                    f"the loss falls on {_tokens(len(places))} {what}, first token {first} "
                    f"{self._shown(ids, first)}",
                )
        masked = at[mask[at] & ~theirs]
        ends = np.array([self._ends_a_turn(int(t)) for t in masked], dtype=bool)
        if ends.any():
            yield self._no_end(int(masked[ends][0]), "is masked", int(ends.sum()))
        rest = masked[~ends]
        if len(rest):
            yield Finding(
                "response_masked",
                int(rest[0]),
                len(rest),
                f"masked: {_tokens(len(rest))} of the response, first token {rest[0]} "
                f"{self._shown(ids, rest[0])}",
            )

    def _is_after_a_response(self, t: int) -> bool:
        """Whether a masked token stands behind what counts of its turn."""
        prompt_boundary, start = self.ours.prompt_boundary, 0
        for turn in () if prompt_boundary is None else prompt_boundary.turns:
            if turn.start <= t < turn.end:
                start = turn.start
        return bool(self.ours.loss_mask[start:t].any())

    def _ends_a_turn(self, t: int) -> bool:
        mask = self.ours.loss_mask
        return self.is_control(int(self.ours.token_ids[t])) and not mask[t + 1 : t + 2].any()

    def _no_end(self, t: int, what: str, count: int = 1) -> Finding:
        shown = self._shown(self.ours.token_ids, t)
        return Finding(
            "end_of_turn_missing",
            t,
            count,
            f"the end of the turn, token {t} {shown}, {what}: the model does not learn to stop",
        )

    def _shown(self, ids: Ints, t: int | np.integer) -> str:
        return repr(self.name(int(ids[t])))
