"""What results say: summaries, comparisons, the best checkpoint; no model is needed."""
