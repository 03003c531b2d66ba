"""The scores of a sequence, put together from its windows."""

from __future__ import annotations

import numpy as np

from seqloss_cli.core.backend import Part, Requested, TokenScores
from seqloss_cli.core.records import Ints, Outcome, SequenceScore, TokenSequence, rejection


class ScoreAssembler:
    """The scores of one sequence while its windows come in."""

    def __init__(self, sequence: TokenSequence, requested: Requested) -> None:
        n = sequence.n_tokens
        self.sequence = sequence
        self.losses = np.zeros(n)
        self.scored = np.zeros(n, dtype=bool)
        self.context_lengths = np.zeros(n, dtype=np.int64)
        self.ranks = np.zeros(n, dtype=np.int64) if requested.ranks else None
        self.entropies = np.zeros(n) if requested.entropy else None
        self.top_ids: np.ndarray | None = None  # as wide as the first scores say
        self.top_log_probs: np.ndarray | None = None
        self.further: dict[str, np.ndarray] = {}
        self.boundaries = np.full((n + 1, 3), np.nan) if requested.marks is not None else None

    def take(self, part: Part, scores: TokenScores) -> None:
        targets, places = part.targets, part.scores
        if self.boundaries is not None and scores.boundaries is not None:
            self.boundaries[targets] = scores.boundaries[places]
        if targets[-1] == len(self.losses):  # what comes after the last token is no token
            targets, places = targets[:-1], _all_but_the_last(places)
        assert not self.scored[targets].any(), "every target is scored exactly once"
        self.losses[targets] = scores.losses[places]
        self.scored[targets] = True
        self.context_lengths[targets] = part.window.context_length(0) + targets
        if self.ranks is not None and scores.ranks is not None:
            self.ranks[targets] = scores.ranks[places]
        if self.entropies is not None and scores.entropies is not None:
            self.entropies[targets] = scores.entropies[places]
        if scores.top_ids is not None and scores.top_log_probs is not None:
            if self.top_ids is None or self.top_log_probs is None:
                shape = (len(self.losses), scores.top_ids.shape[1])
                self.top_ids, self.top_log_probs = np.zeros(shape, dtype=np.int64), np.zeros(shape)
            self.top_ids[targets] = scores.top_ids[places]
            self.top_log_probs[targets] = scores.top_log_probs[places]
        for name, values in scores.further.items():
            if name not in self.further:
                shape = (len(self.losses), *values.shape[1:])
                self.further[name] = np.zeros(shape, dtype=values.dtype)
            self.further[name][targets] = values[places]

    def outcome(self) -> Outcome:
        assert (self.scored[1:] == self.sequence.score_mask[1:]).all(), "each target is scored once"
        broken = np.isnan(self.losses)
        if self.sequence.end_scored and self.boundaries is not None:
            broken[-1] |= np.isnan(self.boundaries[-1, 0])
        for values in self.further.values():
            if values.ndim == 1 and values.dtype == np.float64:
                broken |= np.isnan(values)
        if broken.any():
            who = "the model or its teacher" if "kls" in self.further else "the model"
            return rejection(
                self.sequence.sample,
                "nan_loss",
                f"{who} gives NaN at {int(broken.sum())} tokens, first at token "
                f"{int(np.argmax(broken))}; another --dtype may mend it",
            )
        return SequenceScore(
            sequence=self.sequence,
            losses=self.losses,
            scored=self.scored,
            context_lengths=self.context_lengths,
            ranks=self.ranks,
            entropies=self.entropies,
            top_ids=self.top_ids,
            top_log_probs=self.top_log_probs,
            further=self.further,
            boundaries=self.boundaries,
        )


def _all_but_the_last(places: slice | Ints) -> slice | Ints:
    return slice(places.start, places.stop - 1) if isinstance(places, slice) else places[:-1]
