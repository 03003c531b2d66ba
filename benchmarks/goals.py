"""The goals, in one place. They are not moved: where one is missed, the report says so."""

from __future__ import annotations

PRODUCTS = {
    ("float32", "eager"): 0.70,
    ("float32", "compiled"): 0.85,
    ("bfloat16", "eager"): 0.65,
    ("bfloat16", "compiled"): 0.80,
}
TEXTBOOK = {
    ("float32", "eager"): 1.4,
    ("float32", "compiled"): 1.8,
    ("bfloat16", "eager"): 3.0,
    ("bfloat16", "compiled"): 3.0,
}
HARNESS = {
    ("float32", "eager"): 1.5,
    ("float32", "compiled"): 1.75,
    ("bfloat16", "eager"): 2.0,
    ("bfloat16", "compiled"): 2.5,
}
MINICONS = 4.0
HELLASWAG, ONE_PROMPT = 2.7, 15.0
MEMORY_MB = 300.0
CORPUS_GROWTH_MB = 50.0
AROUND = 1.33
ROW_GROWTH = 1.25
