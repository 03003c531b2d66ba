"""Summaries, comparisons, the best checkpoint, numbers of charts: from results, without a model."""
