"""Checkpoints on disk to models and tokenizers in memory, whole or not at all."""
