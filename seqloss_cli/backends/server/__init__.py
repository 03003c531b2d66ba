"""Losses from an inference server: ids go there, log-probabilities come back and are checked."""
