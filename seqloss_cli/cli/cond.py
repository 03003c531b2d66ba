"""`seqloss cond`: the losses of responses given their prompts."""

from __future__ import annotations

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import (
    CONFIG,
    OtherSettings,
    OutputSettings,
    ShowSettings,
    with_options,
)
from seqloss_cli.cli.options import only, quantities
from seqloss_cli.cli.score import write_scores
from seqloss_cli.core import policies as p

EXAMPLES = (
    'seqloss cond --prompt "The list is" --response " sorted in place."',
    "seqloss cond samples/pairs.jsonl --boundary compare --pmi",
    "seqloss cond samples/chats.jsonl --chat-template samples/chat.jinja --score last --json",
)


@with_options(
    only(i.PairArguments, "files", "prompt", "response", "prompt_field", "response_field"),
    only(p.PairPolicy, "separator"),
    only(p.Reading, "keep_meta", "limit", "max_bytes"),
    only(i.TextArguments, "regions"),
    only(i.PairArguments, "chat", "chat_template"),
    only(p.PairPolicy, "turns", "end_of_turn"),
    p.ModelChoice,
    p.TokenPolicy,
    only(p.WindowChoice, "context"),
    only(p.PairPolicy, "boundary", "truncate", "pmi", "marginal"),
    only(p.BatchPolicy, "share_prefix", "tokens"),
    p.SpeedPolicy,
    quantities(),
    ShowSettings,
    OutputSettings,
    CONFIG,
    OtherSettings,
)
def cond(ctx: typer.Context) -> None:
    """Score responses given their prompts: ln Pr(y|x), ln Pr(x) and the joint.

    Rows have a prompt and a response, or the messages of a chat. One pass over both gives the
    losses of all tokens; only the response's count. A common beginning is computed once.
    """
    from seqloss_cli.cli.report_option import page_after, refuse_page
    from seqloss_cli.cli.run import Inputs
    from seqloss_cli.cli.settings import load_scorer, output_choice
    from seqloss_cli.inputs.reading import ReadStats, described

    choice = output_choice(ctx)
    refuse_page(ctx, choice)
    names, policy = i.pair_names(ctx), i.pair_policy(ctx)
    regions, stats = i.region_file(ctx), ReadStats()
    items = i.pair_items(ctx, names, stats)
    scorer = load_scorer(ctx, policy)
    reading = described(names or ["<pair>"], i.pair_reading(ctx))
    if regions is not None:
        items, reading = regions.attach(items), reading | regions.described()
    with page_after(ctx, choice) as choice:
        write_scores(ctx, scorer, Inputs(items, stats, names, reading), choice)
