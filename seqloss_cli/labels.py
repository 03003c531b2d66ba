"""Labels as trainers write them, and how two sets of them for one text differ, in words.

Labels stand unshifted: labels[t] belongs to input_ids[t], and is -100 where no loss counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from seqloss_cli.records import IGNORED, Bools, Ints, TokenSequence

_MOST_COMPARED = 2000  # tokens between what two sequences have in common at both ends


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
    if not (theirs.labels != IGNORED).any():
        return [Finding("everything_masked", None, len(theirs.labels), "every label is -100")]
    found = list(_wrong_labels(theirs))
    counted = _counted(theirs)
    pairs = _aligned(ours.token_ids, theirs.input_ids)
    only_ours = np.setdiff1d(np.arange(ours.n_tokens), pairs[:, 0])
    only_theirs = np.setdiff1d(np.arange(len(theirs.input_ids)), pairs[:, 1])
    only_theirs = _without_padding(only_theirs, theirs.input_ids, counted)
    words = _Words(ours, theirs, name, is_control)
    found += words.missing(only_ours, only_theirs)
    found += words.extra(only_theirs, counted)
    found += words.masks(pairs, counted)
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
            return moved
    return counted


def _aligned(ours: Ints, theirs: Ints) -> Ints:
    """Positions of the same token in both, shape pairs x 2, ascending."""
    shortest = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:shortest] != theirs[:shortest])
    head = int(differ[0]) if len(differ) else shortest
    back = np.flatnonzero(ours[::-1][: shortest - head] != theirs[::-1][: shortest - head])
    tail = int(back[0]) if len(back) else shortest - head
    blocks = [(0, 0, head)]
    middle = ours[head : len(ours) - tail].tolist(), theirs[head : len(theirs) - tail].tolist()
    if max(map(len, middle)) <= _MOST_COMPARED:
        matcher = SequenceMatcher(None, *middle, autojunk=False)
        blocks += [(head + a, head + b, n) for a, b, n in matcher.get_matching_blocks()]
    blocks.append((len(ours) - tail, len(theirs) - tail, tail))
    steps = [np.arange(n)[:, None] + [[a, b]] for a, b, n in blocks]
    return np.concatenate(steps).astype(np.int64)


def _without_padding(only_theirs: Ints, ids: Ints, counted: Bools) -> Ints:
    """Leaves out a run of one masked id at the beginning or the end."""
    extra = only_theirs[~counted[only_theirs]]
    padding: set[int] = set()
    for end, step in ((0, 1), (len(ids) - 1, -1)):
        place, inside = end, set(extra.tolist())
        while place in inside and ids[place] == ids[end]:
            padding.add(place)
            place += step
    if len(padding) < 2 and 0 in padding:
        padding.discard(0)  # a single masked token in front is more likely a BOS
    return np.array([p for p in only_theirs.tolist() if p not in padding], dtype=np.int64)


def _tokens(n: int) -> str:
    return "1 token" if n == 1 else f"{n} tokens"


@dataclass(frozen=True, slots=True)
class _Words:
    ours: TokenSequence
    theirs: Labels
    name: Callable[[int], str]
    is_control: Callable[[int], bool]

    def missing(self, places: Ints, extra: Ints) -> Iterator[Finding]:
        """Tokens of ours that they do not have."""
        ids, mask = self.ours.token_ids, self.ours.loss_mask
        if len(places) and places[0] == 0 and self.ours.begins_with_bos and 0 not in extra:
            yield Finding("missing_bos", 0, 1, f"no BOS {self._shown(ids, 0)} in front")
            places = places[1:]
        ending = places[places >= self.ours.n_tokens - len(places)]  # a run up to our end
        lost = ending[mask[ending]]
        if len(lost) == 1 and len(ending) == 1 and self.is_control(int(ids[lost[0]])):
            yield self._no_end(int(lost[0]), "is not there")
        elif len(lost):
            n, total = len(lost), int(mask.sum())
            yield Finding(
                "response_truncated",
                int(lost[0]),
                n,
                f"{n} of {total} response tokens cut off, from token {lost[0]} "
                f"{self._shown(ids, lost[0])} on; theirs have {len(self.theirs.labels)} tokens",
            )
        rest = np.setdiff1d(places, ending)
        if len(rest):
            first = int(rest[0])
            yield Finding(
                "tokens_differ",
                first,
                len(rest),
                f"not in theirs: {_tokens(len(rest))} of ours, first token {first} "
                f"{self._shown(ids, first)}; another text, template, tokenizer or seam",
            )

    def extra(self, places: Ints, counted: Bools) -> Iterator[Finding]:
        """Tokens of theirs that we do not have."""
        ids = self.theirs.input_ids
        ours_first, n_theirs = int(self.ours.token_ids[0]), len(ids)
        doubled = n_theirs > 1 and ids[0] == ids[1] == ours_first and self.ours.begins_with_bos
        if doubled and self.ours.token_ids[1:2].tolist() != [ours_first]:
            yield Finding(
                "double_bos", 0, 1, f"begins with BOS {self._shown(ids, 0)} twice: it was added to "
                "a text that holds it"
            )  # fmt: skip
            places = places[places > 1] if len(places) and places[0] <= 1 else places
        last = n_theirs - 1
        if len(places) and places[-1] == last and self.is_control(int(ids[last])):
            counts = "and counts" if counted[last] else "masked"
            yield Finding(
                "extra_end", last, 1, f"ends with {self._shown(ids, last)}, {counts}, which ours "
                "do not have (--eos adds EOS)"
            )  # fmt: skip
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

    def masks(self, pairs: Ints, counted: Bools) -> Iterator[Finding]:
        """Tokens that both have and one of them counts."""
        ids, mask = self.ours.token_ids, self.ours.loss_mask
        at, theirs = pairs[:, 0], counted[pairs[:, 1]]
        first_counted = int(np.argmax(mask))
        too_much = at[theirs & ~mask[at]]
        for kind, places, what in (
            ("loss_on_prompt", too_much[too_much < first_counted], "of the prompt"),
            ("loss_on_template", too_much[too_much > first_counted], "after the response"),
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
