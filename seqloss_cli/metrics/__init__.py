"""Losses to figures: totals, the chain rule, words, regions, rankings, divergences, statistics."""
