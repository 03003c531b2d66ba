"""Rounds of 16 documents of all lengths: the rate of our products, and the ratios to the textbook
loop and to minicons."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import goals
import torch
from figures import TOLERANCE, Check, Figure, Found, Side, Times, difference, ratio_figure, table
from profiling import limits, profile_round, without_the_rest
from rates import PlainRate, Shapes, best_square
from settings import STRATA, Settings
from sides import Ours, Watch, load_plain, minicons, textbook
from workload import checkpoint, ragged, tokenizer


class Documents:
    """One model in one dtype, with the peers that were chosen."""

    def __init__(self, settings: Settings, model: str, dtype: str, sections: Sequence[str]) -> None:
        self.settings, self.model, self.dtype, self.sections = settings, model, dtype, sections
        self.title = f"{model}, {dtype}"
        self._longest = settings.minicons_longest if sections == ["minicons"] else settings.longest
        folder = checkpoint(model)
        self.shapes = Shapes.of(folder)
        modes = settings.modes if set(sections) - {"profile", "minicons"} else ("eager",)
        self.ours = {mode: Ours(folder, dtype, mode) for mode in modes}
        self.peers: dict[str, Any] = {}
        plain = load_plain(folder, dtype)
        if "textbook" in sections:
            self.peers["textbook"] = textbook(*plain)
        if "minicons" in sections:
            self.peers["minicons"] = minicons(*plain)
        self.found = Found()

    def run(self) -> Found:
        self._check_and_warm_up(ragged(self._longest, STRATA - 1))
        shares = {}
        if {"profile", "products"} & set(self.sections):
            shares = self._profile()
        if set(self.sections) - {"profile"}:
            self._rounds(shares)
        return self.found

    def _check_and_warm_up(self, texts: list[str]) -> None:
        counts = [len(tokenizer().encode(text).ids) - 1 for text in texts]
        for mode, ours in self.ours.items():
            with Watch(ours.scorer) as watch:
                found = ours.texts(texts)
            self._mean_batch = watch.mean_tokens
            for peer, log_probs in self.peers.items():
                worst = difference(found, log_probs(texts), counts)
                name = f"{self.title}, {mode} and {peer}"
                self.found.checks.append(Check(peer, name, worst, TOLERANCE[self.dtype]))

    def _profile(self) -> dict[str, float]:
        texts = ragged(self._longest, STRATA - 1)
        shares = profile_round(partial(self.ours["eager"].texts, texts), self.shapes)
        if "profile" in self.sections:
            rows = [[kind, f"{share:.1%}"] for kind, share in shares.items()]
            title = f"{self.title}, eager: where a round's time goes (torch.profiler)"
            self.found.tables.append(table("profile", title, ["part", "share"], rows))
        return shares

    def _rounds(self, shares: dict[str, float]) -> None:
        products = "products" in self.sections
        rate = PlainRate(self.shapes, self._mean_batch, getattr(torch, self.dtype))
        times, plain, flop = Times(), [], []
        for number in range(self.settings.rounds):
            texts = ragged(self._longest, number)
            n_fed = sum(len(tokenizer().encode(text).ids) - 1 for text in texts)
            flop.append(self.shapes.flop(n_fed, n_fed))
            ours: dict[str, Side] = {m: partial(o.texts, texts) for m, o in self.ours.items()}
            peers: dict[str, Side] = {n: partial(p, texts) for n, p in self.peers.items()}
            if number % 2:
                times.round(number, peers)
                plain += [rate.measure()] if products else []
            times.round(number, ours)
            if not number % 2:
                plain += [rate.measure()] if products else []
                times.round(number, peers)
        if products:
            self._products(times, flop, plain, shares)
        for peer in self.peers:
            limit = limits(times.ratio(peer, "eager"), shares) if products else ""
            for mode in self.ours:
                goal = goals.MINICONS if peer == "minicons" else goals.TEXTBOOK[self.dtype, mode]
                name = f"{self.title}, {mode}"
                figure = ratio_figure(peer, name, times[peer], times[mode], goal, note=limit)
                self.found.figures.append(figure)

    def _products(
        self, times: Times, flop: list[float], plain: list[Any], shares: dict[str, float]
    ) -> None:
        means = [mean for mean, _ in plain]
        best, side = best_square(getattr(torch, self.dtype))
        for mode in self.ours:
            own = [f / t for f, t in zip(flop, times[mode], strict=True)]
            ratios = [a / b for a, b in zip(own, means, strict=True)]
            self.found.figures.append(
                Figure(
                    "products",
                    f"{self.title}, {mode}",
                    statistics.median(ratios),
                    goals.PRODUCTS[self.dtype, mode],
                    ratios=ratios,
                    note=f"{_giga(statistics.median(own))} of plain "
                    f"{_giga(statistics.median(means))} GFLOP/s at batches of {self._mean_batch} "
                    f"tokens; best square product {_giga(best)} ({side})",
                )
            )
            if mode == "eager":
                _, both = without_the_rest(statistics.median(ratios), shares)
                name = f"{self.title}, eager, if all but its products and attention took no time"
                note = "by the shares of the profile"
                self.found.figures.append(Figure("products", name, both, note=note))
        by_shape = {shape: [rates[shape] for _, rates in plain] for shape in plain[0][1]}
        rows = [[shape, _giga(statistics.median(rates))] for shape, rates in by_shape.items()]
        rows += [["FLOP-weighted harmonic mean", _giga(statistics.median(means))]]
        rows += [[f"best square ({side})", _giga(best)]]
        title = f"{self.title}: plain F.linear with {self._mean_batch} rows"
        self.found.tables.append(table("products", title, ["in x out", "GFLOP/s"], rows))


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.0f}"


def run(settings: Settings, model: str, dtype: str, sections: Sequence[str]) -> Found:
    return Documents(settings, model, dtype, sections).run()
