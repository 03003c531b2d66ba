"""Several models beside one teacher, in the terminal: a table with a row for each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from seqloss_cli.analysis.plot_data import without_directories
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejections
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import Column, FiguresTable, TableOptions, Unit
from seqloss_cli.display.terminal.writer import run_rows
from seqloss_cli.metrics import divergence as d
from seqloss_cli.metrics.intervals import Estimate

_SHARES = (("total_variation", "TV"), ("acceptance", "acceptance"), ("same_top1", "same favourite"))


def models_answer(sums: d.ModelsTotals, unit: Unit) -> str:
    """Return what a run comes to in a few words."""
    if sums.best is None:
        return "no mean KL is known"
    bound = "at least " if "kl_at_most" in sums.parts[0].units else ""
    kl = unit.figure(sums.parts[sums.best].mean("kl"), "per token")
    return f"{len(sums.parts)} models, least mean KL {bound}{kl}"


class ModelsTableWriter:
    """Writes the totals of several models to a terminal; rows of inputs are for files."""

    def __init__(
        self,
        console: Console,
        options: TableOptions,
        documents: Sequence[d.DocumentSums],
        draft_length: int,
    ) -> None:
        """`documents` are those of each model. Drafts are of `draft_length` tokens."""
        self._console, self._unit, self._strict = console, options.unit, options.strict
        self._documents, self._draft_length = documents, draft_length

    def begin(self, run: RunInfo) -> None:
        """Take the run's record, which names the models."""
        self._run = run
        self._names = [each["name"] for each in run.models or ()]
        self._labels = without_directories(self._names)

    def sequence(self, result: d.ModelsScore, sums: d.ModelsTotals) -> None:
        """Print nothing: rows are for files."""

    def reject(self, rejected: object) -> None:
        """Print nothing: rejected inputs are named on stderr as they come."""

    def end(self, sums: d.ModelsTotals, rejected: Rejections, n_empty_lines: int) -> None:
        """Print a row for each model, the differences from the best, and what was run."""
        first = sums.parts[0]
        if not first.n_sequences:
            return
        self._console.print(self._table(sums))
        self._console.print()
        if sums.best is not None:
            self._console.print(self._differences(sums.best))
            self._console.print()
        beside = fmt.rejected_text(rejected) if rejected else ""
        rows = [("sequences", f"{first.n_sequences:,}", beside)]
        if n_empty_lines:
            rows.append(("empty lines", f"{n_empty_lines:,}", ""))
        rows.append(("scored tokens", f"{first.n_scored:,}", f"of {first.n_tokens:,}"))
        title = "totals"
        if rejected and self._strict:
            title = "totals up to the first rejected input, where --strict stopped"
        self._console.print(fmt.figures_panel(title, [*rows, *self._provenance(sums)]))

    def _table(self, sums: d.ModelsTotals) -> FiguresTable:
        means = [own.means() for own in self._documents]
        in_part = "kl_at_most" in means[0]
        bound = " ≥" if in_part else ""
        columns = [Column("model", least=12), Column("loss", spare=4)]
        columns += [
            Column("perplexity", spare=8),
            Column(f"KL{bound}"),
            Column("KL interval", spare=5),
        ]
        columns += [Column("KL at most", spare=3)] if in_part else []
        columns += [Column(f"reverse KL{bound}", spare=7), Column(f"JS{bound}", spare=9)]
        columns += [Column(f"TV{bound}", spare=6)]
        columns += [Column(f"acceptance{bound}", spare=1), Column("same favourite", spare=2)]
        if self._draft_length:
            columns.append(Column(f"tokens per step{bound}", spare=2))
        teacher = str((self._run.teacher or {}).get("model"))
        table = FiguresTable(
            f"each model beside {self._run.gold} {escape(teacher)}, {self._unit} per token", columns
        )
        for n, (name, own) in enumerate(zip(self._labels, means, strict=True)):
            losses = own["student_loss"]
            cells = [fmt.value_of(losses, self._unit), fmt.value_of(losses.exp())]
            cells += [self._in_unit(own, "kl"), self._unit.interval(own["kl"])]
            cells += [self._in_unit(own, "kl_at_most")] if in_part else []
            cells += [self._in_unit(own, "reverse_kl"), self._in_unit(own, "jensen_shannon")]
            cells += [fmt.value_of(own[key]) if key in own else "-" for key, _ in _SHARES]
            if self._draft_length:
                accepted = own[d.DRAFTS].value if d.DRAFTS in own else None
                cells.append(fmt.number(None if accepted is None else accepted + 1))
            is_best = n == sums.best
            table.add_row(Text(escape(name), style="bold green" if is_best else ""), *cells)
        losses = means[0]["teacher_loss"]
        figures = fmt.value_of(losses, self._unit), fmt.value_of(losses.exp())
        table.add_row(Text("the teacher", style="dim"), *figures)
        if sums.best is not None:
            table.notes.append(f"least KL: {escape(self._labels[sums.best])}")
        if self._labels != self._names:
            table.notes.append("models by the ends of their paths")
        return table

    def _in_unit(self, means: dict[str, Estimate], name: str) -> str:
        return fmt.value_of(means[name], self._unit) if name in means else "-"

    def _differences(self, best: int) -> FiguresTable:
        title = f"KL less that of {escape(self._labels[best])}, {self._unit} per token"
        columns = [Column("model", least=12), Column("difference"), Column("interval", spare=1)]
        table = FiguresTable(title, [*columns, Column("", least=10, spare=2)])
        method = ""
        for n, (name, own) in enumerate(zip(self._labels, self._documents, strict=True)):
            if n == best:
                continue
            found = own.kl_less(self._documents[best])
            known = found.low is not None and found.high is not None
            is_noise = found.low is not None and found.low <= 0
            verdict = "within noise" if is_noise else "beyond noise" if known else ""
            value = None if found.value is None else self._unit.of(found.value)
            figure = fmt.signed(value, fmt.digits_of(found, self._unit))
            table.add_row(Text(escape(name)), figure, self._unit.interval(found), verdict)
            method = found.method
        table.notes.append(f"95%, documents in pairs: {method}")
        return table

    def _provenance(self, sums: d.ModelsTotals) -> list[tuple[str, str, str]]:
        run, teacher = self._run, self._run.teacher or {}
        of_teacher = f"{teacher.get('model')}, {teacher.get('dtype')}"
        if file := teacher.get("saved_as"):
            of_teacher += f", top {teacher.get('top_k')} of {teacher.get('n_words')}, from {file}"
        rows = [("teacher", "", of_teacher)]
        for record in run.models or ():
            made_of = ", ".join(
                str(record[key]) for key in ("dtype", "adapter", "quantization") if record[key]
            )
            rows.append(("model", "", f"{record['name']}: {made_of}, {record['path']}"))
        if flags := {k: n for part in sums.parts for k, n in part.flags.items()}:
            rows.append(("flags", "", fmt.counts_text(flags)))
        rows += [(k, "", v) for k, v in run_rows(run) if k not in ("model",)]
        return rows
