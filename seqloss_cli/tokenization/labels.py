"""Labels as trainers write them, and in words how two sets of them for one text differ.

Labels stand unshifted: labels[t] belongs to input_ids[t], and is -100 where no loss counts.
Shapes: N tokens of a sequence, P places among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.alignment import align_ids, common_prefix, run_length
from seqloss_cli.core.records import IGNORED, Bools, Ints, TokenSequence


@dataclass(frozen=True, slots=True)
class Labels:
    """The ids and labels of one sequence."""

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
    """The first token that it is about: in our sequence, or in theirs where we have none. None of
    what is about no token."""
    count: int
    """Number of tokens that it is about."""
    message: str
    """A sentence for people."""


def compare_labels(
    ours: TokenSequence,
    theirs: Labels,
    name: Callable[[int], str],
    is_control: Callable[[int], bool],
) -> list[Finding]:
    """The differences of `theirs` from our sequence's labels; none where they agree.

    `name` spells an id; `is_control` tells the tokens that end turns and texts. Padding at either
    end, masked, is no difference.
    """
    theirs = _without_padding(ours.token_ids, theirs)
    counted = _counted(theirs)
    pairs = align_ids(ours.token_ids, theirs.input_ids)
    comparison = _Comparison(ours, theirs, pairs, name, is_control)
    if not counted.any():
        cut = [f for f in comparison.missing() if f.kind == "response_truncated"]
        count = len(theirs.labels)
        return [*cut, Finding("everything_masked", None, count, "every label is -100")]
    return [
        *_wrong_labels(theirs),
        *comparison.missing(),
        *comparison.extra(counted),
        *comparison.masks(counted),
    ]


def _finding(kind: str, places: Ints, message: str) -> Finding:
    """A finding about the tokens at some places, shape P."""
    return Finding(kind, int(places[0]), len(places), message)


def _wrong_labels(theirs: Labels) -> Iterator[Finding]:
    """Labels that are neither -100 nor the id at their own position."""
    ids, labels = theirs.input_ids, theirs.labels
    # Models of transformers shift labels themselves; other losses want them shifted before.
    wrong = np.flatnonzero((labels != IGNORED) & (labels != ids))
    if not len(wrong):
        return
    first = wrong[0]
    if step := _shift(theirs):
        message = (
            f"shifted by one: labels[{first}] is {'the next' if step > 0 else 'the previous'} "
            "token's id; a model that shifts labels itself, as those of transformers do, then "
            "learns the wrong token"
        )
        yield _finding("shifted", wrong, message)
    else:
        message = (
            f"{len(wrong)} labels are neither -100 nor the id at their position, first "
            f"labels[{first}] = {labels[first]} at id {ids[first]}"
        )
        yield _finding("wrong_labels", wrong, message)


def _shift(theirs: Labels) -> int:
    """1 or -1 where each label that counts is the id so many tokens on, if there is one; else 0."""
    ids, labels = theirs.input_ids, theirs.labels
    places = np.flatnonzero(labels != IGNORED)
    for step in (1, -1):
        inside = places[(places + step >= 0) & (places + step < len(ids))]
        if len(inside) and (labels[inside] == ids[inside + step]).all():
            return step
    return 0


def _counted(theirs: Labels) -> Bools:
    """Shape N: the tokens that the labels count, shifted back where they were shifted."""
    counted: Bools = theirs.labels != IGNORED
    if (theirs.labels == theirs.input_ids)[counted].all() or not (step := _shift(theirs)):
        return counted
    moved = np.zeros_like(counted)
    places = np.flatnonzero(counted) + step
    moved[places[(places >= 0) & (places < len(moved))]] = True
    # The last label fell off the end when they were shifted.
    moved[-1] |= step == -1 and moved[-2:-1].any()
    return moved


def _without_padding(ours: Ints, theirs: Labels) -> Labels:
    """The labels without what fills a batch: a masked run of one id at either end.

    As many of that id as ours have there are no padding.
    """
    # By runs, not by a pad id: EOS and BOS serve as padding where a tokenizer has none.
    ids, masked = theirs.input_ids, theirs.labels == IGNORED
    left = run_length(ids, masked)
    # One BOS too many is no padding but a mistake, and reported as that.
    if left and ids[0] == ours[0]:
        left -= run_length(ours, np.ones(len(ours), dtype=bool))
        left = left if left > 1 else 0
    elif ids[left : left + 1].tolist() != ours[:1].tolist():
        left = 0
    ids, labels, masked = ids[left:], theirs.labels[left:], masked[left:]
    right = run_length(ids[::-1], masked[::-1])
    end = max(len(ids) - right, common_prefix(ours, ids))
    return Labels(ids[:end], labels[:end])


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Our labels of one text beside theirs."""

    ours: TokenSequence
    theirs: Labels
    pairs: Ints
    """Shape P x 2: positions of the same token in ours and theirs, ascending."""
    name: Callable[[int], str]
    is_control: Callable[[int], bool]

    @property
    def _only_theirs(self) -> Ints:
        return np.setdiff1d(np.arange(len(self.theirs.input_ids)), self.pairs[:, 1])

    def missing(self) -> Iterator[Finding]:
        """Differences in tokens of ours that they do not have."""
        ids, mask, n_tokens = self.ours.token_ids, self.ours.loss_mask, self.ours.n_tokens
        places = np.setdiff1d(np.arange(n_tokens), self.pairs[:, 0])
        extra = self._only_theirs
        if len(places) and places[0] == 0 and self.ours.begins_with_bos and 0 not in extra:
            yield Finding("missing_bos", 0, 1, f"no BOS {self._shown(ids, 0)} in front")
            places = places[1:]
        ends = np.array([mask[t] and self._ends_a_turn(int(t)) for t in places], dtype=bool)
        ending = places[places >= n_tokens - len(places)]  # a run up to our end
        if len(self.theirs.input_ids) - 1 in extra:  # they go on with something else
            ending = ending[:0]
        lost = ending[mask[ending]]
        # One lost token that ends a turn is no cut: that is reported as a missing end, below.
        only_the_end = len(lost) == 1 and bool(ends[places == lost[0]].all())
        if len(lost) and not only_the_end:
            message = (
                f"{len(lost)} of {int(mask.sum())} response tokens cut off, from {{first}} on; "
                f"theirs have {len(self.theirs.labels)} tokens"
            )
            yield from self._found("response_truncated", ids, lost, message)
            ends &= ~np.isin(places, ending)
        yield from self._no_end(places[ends], "is not there")
        rest = np.setdiff1d(places[~ends], ending)
        message = "not in theirs: {tokens} of ours, first {first}; another text, template, "
        yield from self._found("tokens_differ", ids, rest, message + "tokenizer or seam")

    def extra(self, counted: Bools) -> Iterator[Finding]:
        """Differences in tokens of theirs that we do not have; `counted`, shape N, is of theirs."""
        ids, places = self.theirs.input_ids, self._only_theirs
        # A rendered chat that holds a BOS, tokenized with special tokens, gets a second one.
        first_two, bos = ids[:2].tolist(), self.ours.token_ids[:1].tolist()
        if self.ours.begins_with_bos and first_two == bos * 2 and len(places):
            shown = self._shown(ids, 0)
            message = f"begins with BOS {shown} twice: it was added to a text that had it"
            yield Finding("double_bos", 0, 1, message)
            places = places[places > 1] if places[0] <= 1 else places
        last = len(ids) - 1
        if len(places) and places[-1] == last and self.is_control(int(ids[last])):
            counts = "and counts" if counted[last] else "masked"
            shown = self._shown(ids, last)
            message = f"ends with {shown}, {counts}, which ours do not have (--eos adds EOS)"
            yield Finding("extra_end", last, 1, message)
            places = places[:-1]
        message = "not in ours: {tokens} of theirs, first their {first}"
        yield from self._found("extra_tokens", ids, places, message)

    def masks(self, counted: Bools) -> Iterator[Finding]:
        """Tokens that both have and only one of them counts; `counted`, shape N, is of theirs."""
        ids, mask = self.ours.token_ids, self.ours.loss_mask
        at, theirs = self.pairs[:, 0], counted[self.pairs[:, 1]]
        too_much = at[theirs & ~mask[at]]
        after = np.array([self._is_after_a_response(int(t)) for t in too_much], dtype=bool)
        message = "the loss falls on {tokens} of the prompt, first {first}"
        yield from self._found("loss_on_prompt", ids, too_much[~after], message)
        message = "the loss falls on {tokens} after the response, first {first}"
        yield from self._found("loss_on_template", ids, too_much[after], message)
        masked = at[mask[at] & ~theirs]
        ends = np.array([self._ends_a_turn(int(t)) for t in masked], dtype=bool)
        yield from self._no_end(masked[ends], "is masked")
        message = "masked: {tokens} of the response, first {first}"
        yield from self._found("response_masked", ids, masked[~ends], message)

    def _is_after_a_response(self, t: int) -> bool:
        """A masked token stands behind tokens of its turn that count."""
        prompt_boundary, start = self.ours.prompt_boundary, 0
        for turn in () if prompt_boundary is None else prompt_boundary.turns:
            if turn.start <= t < turn.end:
                start = turn.start
        return bool(self.ours.loss_mask[start:t].any())

    def _ends_a_turn(self, t: int) -> bool:
        mask = self.ours.loss_mask
        return self.is_control(int(self.ours.token_ids[t])) and not mask[t + 1 : t + 2].any()

    def _no_end(self, places: Ints, what: str) -> Iterator[Finding]:
        message = "the end of the turn, {first}, " + what + ": the model does not learn to stop"
        return self._found("end_of_turn_missing", self.ours.token_ids, places, message)

    def _found(self, kind: str, ids: Ints, places: Ints, message: str) -> Iterator[Finding]:
        """The finding about some places in ids, if any; `message` may name them."""
        if len(places):
            tokens = "1 token" if len(places) == 1 else f"{len(places)} tokens"
            first = f"token {places[0]} {self._shown(ids, places[0])}"
            yield _finding(kind, places, message.format(tokens=tokens, first=first))

    def _shown(self, ids: Ints, t: int | np.integer) -> str:
        return repr(self.name(int(ids[t])))
