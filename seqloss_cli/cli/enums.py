"""What options with a fixed set of values take."""

from __future__ import annotations

from enum import StrEnum


class Bos(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


class SpecialTokens(StrEnum):
    parse = "parse"
    text = "text"
    error = "error"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


class Quantize(StrEnum):
    int8 = "int8"


class Compile(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class Unit(StrEnum):
    nats = "nats"
    bits = "bits"


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    openai = "openai"
    parquet = "parquet"
    csv = "csv"
    tsv = "tsv"


class Level(StrEnum):
    sequence = "sequence"
    token = "token"
    word = "word"
    region = "region"


class PlotKind(StrEnum):
    curve = "curve"
    histogram = "histogram"
    position = "position"
    calibration = "calibration"
    scatter = "scatter"
    groups = "groups"


class Metric(StrEnum):
    mean_loss = "mean_loss"
    bits_per_byte = "bits_per_byte"
    perplexity = "perplexity"


class BinsBy(StrEnum):
    width = "width"
    mass = "mass"


class PlotLevel(StrEnum):
    sequence = "sequence"
    token = "token"
