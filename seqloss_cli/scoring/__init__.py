"""Samples to scores: the pipeline, in order and in bounded memory."""
