"""What a GPU shows in ten minutes, with no network and random weights: `make gpu-check`.

Sections run in order of worth, each in a process and with a time limit of its own; each result is
written to report.json and report.md as soon as it is there, so that half a run is worth something.
`--device cpu` takes small shapes, and proves the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
LIMITS = {"exactness": 150, "memory": 90, "speed": 240, "profile": 60}
"""Seconds of each section, imports (10 s) included: ten minutes less what the report takes."""
DTYPES = ("float32", "bfloat16", "float16")
TINY = ("llama", "gpt2", "qwen3", "gemma2", "mixtral", "gpt-neox", "mamba", "cohere", "falcon-h1")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Nats between two ways of computing the same, as the program itself allows at load."""
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""FLOP per second of dense bfloat16 products, by the makers' data sheets."""
GOAL_OF_PEAK, GOAL_HEAD, GOAL_HARNESS, GOAL_SHARED, GOAL_GB = 0.55, 0.70, 3.0, 10.0, 1.0


@dataclass
class Result:
    """One figure: against its goal, where it has one."""

    section: str
    name: str
    value: float | str | None
    unit: str = ""
    goal: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.goal is None or not isinstance(self.value, float):
            return ""
        met = self.value <= self.goal if self.at_most else self.value >= self.goal
        return "met" if met else "MISSED"


# -- models and rows of random ids --------------------------------------------------------------


def llama_config(size: str, vocabulary: int = 128_256, context: int = 8192) -> Any:
    """Shapes of Llama 3: 1.2 and 8 billion parameters; `small` is for a CPU."""
    from transformers import LlamaConfig

    hidden, wide, layers, heads = {
        "small": (256, 1024, 2, 8), "1.2B": (2048, 8192, 16, 32), "8B": (4096, 14336, 32, 32),
    }[size]  # fmt: skip
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 4,
        max_position_embeddings=context, tie_word_embeddings=size == "1.2B",
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def large_configs(small: bool) -> Iterator[tuple[str, Any]]:
    """About a billion parameters each, where the device is not a CPU."""
    from transformers import Gemma3TextConfig, GPT2Config, Qwen3Config

    yield "Llama", llama_config("small" if small else "1.2B", 1000 if small else 128_256)
    common = {"bos_token_id": None, "eos_token_id": None}
    yield "GPT-2", GPT2Config(
        **common, vocab_size=1000 if small else 50_257, n_embd=64 if small else 1280,
        n_layer=2 if small else 36, n_head=4 if small else 20, n_positions=1024,
    )  # fmt: skip
    shape = {
        "hidden_size": 64 if small else 2048, "intermediate_size": 128 if small else 6144,
        "num_hidden_layers": 2 if small else 12, "num_attention_heads": 4 if small else 16,
        "num_key_value_heads": 2 if small else 8, "head_dim": 16 if small else 128,
        "vocab_size": 1000 if small else 128_256, "max_position_embeddings": 4096,
    }  # fmt: skip
    yield "Qwen3", Qwen3Config(**common, **shape)
    yield "Gemma 3", Gemma3TextConfig(**common, **shape, sliding_window=512)


def made(config: Any, dtype: str, device: str) -> Any:
    """A model with random weights, whose losses vary by nats: a wrong position would show."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.normal_(0, 2 / head.shape[1] ** 0.5)
    return model


def rows_of(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> list[Any]:
    from seqloss_cli.backends.torch.path_selection import probe_of

    random = np.random.default_rng(seed)
    return [probe_of(random.integers(2, vocabulary, n)) for n in lengths]


def ragged(n_tokens: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths of documents, log-normal, that add up to about so many tokens."""
    random, found = np.random.default_rng(seed), list[int]()
    while sum(found) < n_tokens:
        found.append(int(np.clip(random.lognormal(np.log(longest / 4), 0.8), 16, longest)))
    return found


def hellaswag(
    vocabulary: int, n_prompts: int, prompt: int = 60, ending: int = 25, seed: int = 0
) -> list[Any]:
    """Prompts of 60 tokens, four endings of 25 each."""
    from shared_prompts import sequences

    rows = sequences((n_prompts, prompt, 4, ending), seed)
    for row in rows:
        row.token_ids[:] %= vocabulary
    return rows


def losses_by(backend: Any, rows: Sequence[Any], tokens: int, share: bool = False) -> Any:
    """Losses of all scored tokens of the rows, in their order (nats)."""
    from dataclasses import replace

    from seqloss_cli.core.backend import Requested
    from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
    from seqloss_cli.core.records import Sample
    from seqloss_cli.scoring.pipeline import score_samples

    samples = [Sample(str(n), "check", text="x") for n in range(len(rows))]
    longest = max(len(row.token_ids) for row in rows)
    found = score_samples(
        samples,
        lambda some: [replace(rows[int(s.id)], sample=s) for s in some],
        backend,
        WindowPolicy(longest, "check", longest),
        Requested(),
        BatchPolicy(tokens, share_prefix=share),
    )
    scores = {int(score.sequence.sample.id): score for score in found}
    return np.concatenate([scores[n].losses[scores[n].scored] for n in range(len(rows))])


def worst(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def median(a: Any, b: Any) -> float:
    return float(np.median(np.abs(a - b)))


# -- sections -----------------------------------------------------------------------------------


def exactness(device: str, small: bool) -> Iterator[Result]:
    """Paths, dtypes and architectures against the oracle; losses independent of batch and order."""
    import torch

    from helpers.architectures import build
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.forward import PATHS

    result = partial(Result, "exactness")
    for name in TINY:
        for dtype in DTYPES:
            model = build(name).to(getattr(torch, dtype))
            rows = rows_of(258, [3, 17, 60, 33, 8, 41])
            oracle = TorchBackend(_float64_copy(model), 64, path="plain")
            expected = losses_by(oracle, rows, 4096)
            # Rounding turns a token to another expert, whose loss differs by nats: most must agree.
            routed = _has_experts(model) and dtype != "float32"
            apart_by, of = (median, "half of the tokens, ") if routed else (worst, "")
            backend = TorchBackend(model.to(device), 64, share_prefix=True)
            found, path = losses_by(backend, rows, 256), backend.path
            limit = TOLERANCE[dtype]
            yield result(f"tiny {name}, {dtype}: {of}{path} against float64 on the CPU",
                         apart_by(found, expected), "nats", limit, True,
                         "; ".join(backend.warnings))  # fmt: skip
            for other in PATHS[PATHS.index(path) :]:
                forced = TorchBackend(model, 64, path=other)
                yield result(f"tiny {name}, {dtype}: {of}{other} against plain",
                             apart_by(losses_by(forced, rows, 256), _plain(model, rows)), "nats",
                             limit, True)  # fmt: skip
            if backend.capabilities.longest_shared:
                pairs = hellaswag(258, 4, 40, 12)
                apart, shared = (losses_by(backend, pairs, 512, s) for s in (False, True))
                yield result(f"tiny {name}, {dtype}: {of}shared prompts against each row",
                             apart_by(shared, apart), "nats", limit, True)  # fmt: skip
    for name, config in large_configs(small):
        for dtype in ("bfloat16", "float32"):
            model = made(config, dtype, device)
            rows = rows_of(config.vocab_size, ragged(2000 if small else 12_000, 900))
            backend = TorchBackend(model, 1024)
            one = _plain(model, rows)
            tries = [losses_by(backend, rows, tokens) for tokens in (2048, 16_384)]
            tries.append(_turned(backend, rows))
            yield result(f"{name}, {dtype}: {backend.path} against one at a time",
                         max(worst(found, one) for found in tries), "nats", TOLERANCE[dtype], True,
                         "; ".join(backend.warnings))  # fmt: skip
            yield result(f"{name}, {dtype}: other batches and another order",
                         max(worst(found, tries[0]) for found in tries[1:]), "nats",
                         TOLERANCE[dtype] / 10, True)  # fmt: skip
            del model, backend


def _float64_copy(model: Any) -> Any:
    import copy

    found = copy.deepcopy(model).cpu().double()
    # The grouped products of experts know no float64.
    if _has_experts(model):
        found.set_experts_implementation("eager")
    return found


def _has_experts(model: Any) -> bool:
    return hasattr(model, "set_experts_implementation") and hasattr(
        model.config, "num_experts_per_tok"
    )


def _plain(model: Any, rows: Sequence[Any]) -> Any:
    from seqloss_cli.backends.torch.backend import TorchBackend

    return losses_by(TorchBackend(model, 1 << 20, path="plain"), rows, 1)


def _turned(backend: Any, rows: Sequence[Any]) -> Any:
    """Losses of rows that are fed in the opposite order, in the first order."""
    found = losses_by(backend, rows[::-1], 8192)
    sizes = [int(row.score_mask.sum()) for row in rows[::-1]]
    return np.concatenate(np.split(found, np.cumsum(sizes)[:-1])[::-1])


def memory(device: str, small: bool) -> Iterator[Result]:
    """Peaks beyond the weights, beside those of the layers alone; a batch that does not fit."""
    import torch

    from seqloss_cli.backends.torch.backend import TorchBackend

    result = partial(Result, "memory")
    vocabularies = (2000, 4000) if small else (128_256, 256_000)
    for vocabulary in vocabularies:
        for n_tokens in (512, 2048) if small else (8192, 131_072):
            config = llama_config("small" if small else "1.2B", vocabulary, 1 << 18)
            model = made(config, "bfloat16", device)
            rows = rows_of(vocabulary, [n_tokens])
            backend = TorchBackend(model, 1 << 18)
            seen = peak_beyond(device, partial(losses_by, backend, rows, n_tokens)) / 1e9
            ids = torch.from_numpy(rows[0].token_ids)[None].to(device)
            alone = peak_beyond(device, partial(_layers_alone, model, ids)) / 1e9
            name = f"{n_tokens:,} tokens, vocabulary {vocabulary:,}: peak beyond weights"
            yield result(name, seen, "GB", note=f"layers alone {alone:.2f} GB; {backend.path}")
            yield result(f"{name} and layers", seen - alone, "GB", GOAL_GB, True)
            del model, backend
    if device != "cpu":
        yield _out_of_memory(device)
        torch.cuda.empty_cache()


def _layers_alone(model: Any, ids: Any) -> None:
    import torch

    with torch.inference_mode():
        model.get_decoder()(input_ids=ids, use_cache=False)


def _out_of_memory(device: str) -> Result:
    """Give memory for a fourth of a batch: it is halved, and the run goes on."""
    import torch

    from seqloss_cli.backends.torch.backend import TorchBackend

    model = made(llama_config("1.2B"), "bfloat16", device)
    rows = rows_of(128_256, [1024] * 128)
    backend = TorchBackend(model, 1024)
    expected = losses_by(backend, rows, 4096)
    peak = peak_beyond(device, partial(losses_by, backend, rows, 1 << 17))
    whole = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_allocated() + peak / 4
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / whole))
    try:
        found = losses_by(backend, rows, 1 << 17)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    note = f"{backend.n_too_large} batches did not fit"
    return Result("memory", "a batch of 131,072 tokens in memory for a fourth of it",
                  worst(found, expected), "nats", TOLERANCE["bfloat16"], True, note)  # fmt: skip


def speed(device: str, small: bool) -> Iterator[Result]:
    """Documents and shared prompts at two sizes; the head; its blocks; compiled; the harness."""
    import torch

    result = partial(Result, "speed")
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    peak = next((flop for chip, flop in PEAK.items() if chip in name), None)
    yield result("device", name, note=f"{(peak or 0) / 1e12:.0f} TFLOP/s by its data sheet")
    for size in ("small",) if small else ("8B", "1.2B"):
        config = llama_config(size, 4000 if small else 128_256)
        model = made(config, "bfloat16", device)
        yield from _speed_of(size, model, device, peak, small)
        del model
        if device != "cpu":
            torch.cuda.empty_cache()


def _speed_of(
    size: str, model: Any, device: str, peak: float | None, small: bool
) -> Iterator[Result]:
    from rates import PlainRate, Shapes

    from seqloss_cli.backends.torch import head
    from seqloss_cli.backends.torch.backend import TorchBackend

    result, vocabulary = partial(Result, "speed"), model.config.vocab_size
    backend = TorchBackend(model, 4096, share_prefix=True)
    documents = rows_of(vocabulary, ragged(1500, 600) if small else ragged(200_000, 2048))
    n_tokens = sum(len(row.token_ids) for row in documents)
    flop = Shapes(model).flop(n_tokens, n_tokens)
    rates = {}
    for tokens in (1024, 2048) if small else (8192, 16_384, 32_768):
        seconds = median_seconds(device, partial(losses_by, backend, documents, tokens))
        rates[tokens] = flop / seconds
        yield result(f"{size}: documents, batches of {tokens:,}", n_tokens / seconds, "tokens/s",
                     note=f"{rates[tokens] / 1e12:.1f} TFLOP/s, {backend.path}")  # fmt: skip
    plain = PlainRate(Shapes(model), 2048 if small else 16_384, model.dtype, device)
    best, (products, _) = max(rates.values()), plain.measure()
    yield result(f"{size}: share of plain `F.linear`'s rate", best / products,
                 note=f"{products / 1e12:.1f} TFLOP/s")  # fmt: skip
    if peak is not None:
        goal = GOAL_OF_PEAK if size == "8B" else None
        yield result(f"{size}: share of the device's peak", best / peak, "", goal)
    prompts = hellaswag(vocabulary, 2 if small else 500)
    n_fed = sum(len(row.token_ids) for row in prompts)
    apart, shared = (
        median_seconds(device, partial(losses_by, backend, prompts, 16_384, share))
        for share in (False, True)
    )
    yield result(f"{size}: shared prompts of HellaSwag's kind", n_fed / shared, "tokens/s",
                 note=f"{apart / shared:.2f} times as fast as each row by itself")  # fmt: skip
    rows, width = (1024, 1 << 20) if small else (2048, 1 << 24)
    yield result(f"{size}: the head alone, share of its product's rate",
                 head_share(model, device, rows), "", GOAL_HEAD)  # fmt: skip
    for rows, logits in ((512, width), (1024, width), (2048, width), (4096, width),
                         (2048, width // 4), (2048, 4 * width), (8192, 4 * width)):  # fmt: skip
        before = head.GPU_BLOCK_ROWS, head.GPU_BLOCK_LOGITS
        head.GPU_BLOCK_ROWS, head.GPU_BLOCK_LOGITS = rows, logits
        try:
            share = head_share(model, device, 1024 if small else 16_384)
        finally:
            head.GPU_BLOCK_ROWS, head.GPU_BLOCK_LOGITS = before
        yield result(f"{size}: head in blocks of {rows:,} rows, {logits:,} logits", share)
    yield from _harness(size, model, device, backend, documents, prompts, small)
    yield from _compiled(size, backend, device, documents, small)


def _compiled(
    size: str, backend: Any, device: str, documents: Sequence[Any], small: bool
) -> Iterator[Result]:
    tokens = 2048 if small else 16_384
    work = partial(losses_by, backend, documents, tokens)
    eager, start = median_seconds(device, work), time.perf_counter()
    try:
        backend.compile()
        work()
    except Exception as error:
        yield Result("speed", f"{size}: --compile", None, note=str(error)[:200])
        return
    took = time.perf_counter() - start - eager
    compiled = median_seconds(device, work)
    yield Result("speed", f"{size}: compiled, times as fast as eager", eager / compiled,
                 note=f"compiling took {took:.0f} s")  # fmt: skip
    backend.stop_compiled()


def _harness(
    size: str, model: Any, device: str, backend: Any, documents: Sequence[Any],
    prompts: Sequence[Any], small: bool,
) -> Iterator[Result]:  # fmt: skip
    """lm-evaluation-harness on the same ids, where it is installed."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        yield Result("speed", f"{size}: lm-evaluation-harness", "not installed")
        return
    from helpers.builders import byte_tokenizer

    peer = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=16, max_length=4096)
    kinds = (("documents", documents[: 8 if small else 60], GOAL_HARNESS),
             ("shared prompts", prompts, GOAL_SHARED))  # fmt: skip
    for kind, rows, goal in kinds:
        requests = [_request(row) for row in rows]
        theirs = median_seconds(
            device, partial(peer._loglikelihood_tokens, requests, disable_tqdm=True), 2
        )
        ours = median_seconds(device, partial(losses_by, backend, rows, 16_384, True))
        yield Result("speed", f"{size}: times lm-evaluation-harness, {kind}", theirs / ours, "",
                     None if small else goal)  # fmt: skip


def _request(row: Any) -> Any:
    n_prompt = max(1, int(np.argmax(row.loss_mask))) if row.loss_mask is not None else 1
    ids = row.token_ids.tolist()
    return (("", ""), ids[:n_prompt], ids[n_prompt:])


def profile(device: str, small: bool) -> Iterator[Result]:
    """Shares of a round's time on the device."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    from seqloss_cli.backends.torch.backend import TorchBackend

    model = made(llama_config("small" if small else "1.2B", 4000 if small else 128_256),
                 "bfloat16", device)  # fmt: skip
    backend = TorchBackend(model, 4096)
    documents = rows_of(
        model.config.vocab_size, ragged(1500 if small else 100_000, 600 if small else 2048)
    )
    work = partial(losses_by, backend, documents, 2048 if small else 16_384)
    work()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    wait_for(device)
    started = time.perf_counter()
    with profiling(activities=activities, acc_events=True) as seen:
        work()
        wait_for(device)
    whole = time.perf_counter() - started
    parts = {"products": 0.0, "attention": 0.0, "head and element-wise": 0.0}
    for event in seen.key_averages():
        name, on_gpu = event.key.lower(), device != "cpu"
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if any(word in name for word in ("gemm", "cutlass", "::mm", "addmm", "nvjet", "linear")):
            parts["products"] += seconds
        elif any(word in name for word in ("flash", "attention", "fmha", "seqloss::attend")):
            parts["attention"] += seconds
        else:
            parts["head and element-wise"] += seconds
    parts["host gaps"] = max(0.0, whole - sum(parts.values()))
    for part, seconds in parts.items():
        yield Result("profile", part, seconds / whole, "of the time")


# -- measuring ----------------------------------------------------------------------------------


def wait_for(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def median_seconds(device: str, work: Callable[[], Any], rounds: int = 3) -> float:
    work()  # warms up
    times = []
    for _ in range(rounds):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_beyond(device: str, work: Callable[[], Any]) -> float:
    """Most bytes in use at a time while it works, beyond those before."""
    import torch

    work()
    if device == "cpu":
        from helpers.memory import peak_of

        return float(peak_of(work))
    wait_for(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait_for(device)
    return float(torch.cuda.max_memory_allocated() - before)


def head_share(model: Any, device: str, n_rows: int) -> float:
    """The rate of losses from hidden states, against that of the head's product alone."""
    import torch
    from torch.nn.functional import linear

    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.head import LazyLogits, score_logits
    from seqloss_cli.core.backend import Requested

    forward = TorchBackend(model, 64).model_forward
    weight = model.get_output_embeddings().weight
    hidden = torch.randn(n_rows, weight.shape[1], device=device, dtype=model.dtype)
    targets = torch.randint(0, len(weight), (n_rows,), device=device)
    lazy = LazyLogits(lambda rows, ids: forward._logits_of(hidden[rows], ids), len(weight), True)
    with torch.inference_mode():
        ours = median_seconds(device, partial(score_logits, lazy, targets, Requested()))
        part = min(n_rows, 2048)
        plain = median_seconds(device, partial(linear, hidden[:part], weight)) * n_rows / part
    return plain / ours


# -- running and the report ---------------------------------------------------------------------

SECTIONS: dict[str, Callable[[str, bool], Iterator[Result]]] = {
    "exactness": exactness, "memory": memory, "speed": speed, "profile": profile,
}  # fmt: skip


def child(section: str, device: str, small: bool, path: Path) -> None:
    """Run one section, and write each of its results as it comes."""
    start = time.perf_counter()
    for result in SECTIONS[section](device, small):
        with path.open("a") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")
        print(f"{time.perf_counter() - start:6.1f} s  {result.name}: {_shown(result)}", flush=True)


def report(results: Sequence[Result], endings: dict[str, str], machine: Any, output: Path) -> None:
    """Write report.json and report.md."""
    output.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine, "sections": endings,
             "results": [asdict(r) | {"verdict": r.verdict} for r in results]}  # fmt: skip
    (output / "report.json").write_text(json.dumps(whole, indent=1) + "\n")
    lines = ["# seqloss on a GPU", "", "Made by `make gpu-check`.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    for section, ending in endings.items():
        lines += ["", f"## {section} ({ending})", "", "| | | goal | |", "|---|---|---|---|"]
        for r in results:
            if r.section == section:
                goal = "" if r.goal is None else f"{'≤' if r.at_most else '≥'} {r.goal:g} "
                lines.append(f"| {r.name} | {_shown(r)} | {goal}{r.verdict} | {r.note} |")
    (output / "report.md").write_text("\n".join(lines) + "\n")


def _shown(result: Result) -> str:
    value = result.value
    shown = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    return f"{shown} {result.unit}".strip()


def machine_of(device: str) -> dict[str, Any]:
    from machine import describe

    asked = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(), "
             "torch.version.cuda, round(torch.cuda.mem_get_info()[1] / 1e9), 'GB')"]  # fmt: skip
    gpu = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "none"
    return {"device": device, "gpu": gpu, **describe(threads=0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, default=HERE / "report" / "gpu", metavar="DIR")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    small = options.device == "cpu"
    if options.section:
        child(options.section, options.device, small, options.results)
        return 0
    machine, endings, failed = machine_of(options.device), dict[str, str](), False
    if machine["gpu"] == "none" and not small:
        print("no GPU that torch can use: --device cpu proves the script", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        for section in options.only:
            print(f"-- {section}", flush=True)
            command = [sys.executable, __file__, "--section", section, "--device", options.device,
                       "--results", str(path)]  # fmt: skip
            start = time.monotonic()
            try:
                code = subprocess.run(command, timeout=LIMITS[section]).returncode
                endings[section] = f"{time.monotonic() - start:.0f} s" + (
                    f", ended with {code}" if code else ""
                )
                failed |= bool(code)
            except subprocess.TimeoutExpired:
                endings[section] = f"cut off after {LIMITS[section]} s"
            lines = path.read_text().splitlines() if path.exists() else []
            results = [Result(**json.loads(line)) for line in lines]
            report(results, endings, machine, options.output)
    print(f"wrote {options.output}/report.md and report.json")
    return int(failed or any(r.verdict == "MISSED" for r in results))


if __name__ == "__main__":
    sys.exit(main())
