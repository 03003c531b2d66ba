"""`seqloss cond`: the losses of responses given their prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import pairs as p
from seqloss_cli.cli.failures import command_errors
from seqloss_cli.cli.views import VIEW_OPTIONS

EXAMPLES = (
    'seqloss cond --prompt "The list is" --response " sorted in place."',
    "seqloss cond samples/pairs.jsonl --boundary compare --pmi",
    "seqloss cond samples/chats.jsonl --chat-template samples/chat.jinja --score last --json",
)


@o.with_options(
    p.PAIR_INPUTS,
    o.REGIONS_OPTION,
    p.CHAT_OPTIONS,
    o.MODEL_OPTIONS,
    o.POLICY_OPTIONS,
    p.SEAM_OPTIONS,
    {
        "pmi": (
            Annotated[
                bool, o.flag(o.POLICY, "--pmi", "Score the response without its prompt, too.")
            ],
            False,
        ),
        "no_marginal": (
            Annotated[bool, o.flag(o.POLICY, "--no-marginal", "Do not score prompts: faster.")],
            False,
        ),
        "no_share_prefix": p.NO_SHARE_PREFIX,
    },
    o.SPEED_OPTIONS,
    o.SHOW_OPTIONS,
    VIEW_OPTIONS,
    o.OUTPUT_OPTIONS,
    o.RESUME_OPTION,
    o.PAGE_OPTION,
    o.OTHER_OPTIONS,
)
def cond(ctx: typer.Context) -> None:
    """Score responses given their prompts: ln Pr(y|x), ln Pr(x) and the joint.

    Rows have a prompt and a response, or the messages of a chat. One pass over both gives the
    losses of all tokens; only the response's count. A common beginning is computed once.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.choices import choose_output, choose_requested, load_scorer
        from seqloss_cli.cli.inputs import choose_regions
        from seqloss_cli.cli.output import run_to_end
        from seqloss_cli.cli.paging import page_after, refuse_page
        from seqloss_cli.inputs import ReadStats, described

        choice = choose_output(ctx)
        refuse_page(ctx, choice)
        names, policy = p.pair_names(ctx), p.choose_pairs(ctx)
        regions, stats = choose_regions(ctx), ReadStats()
        items = p.pair_items(ctx, names, stats)
        scorer = load_scorer(ctx, policy)
        read = described(names or ["<pair>"], p.pair_reading(ctx))
        if regions is not None:
            items, read = regions.attach(items), read | regions.described()
        with page_after(ctx, choice) as choice:
            run_to_end(scorer, items, stats, names, choose_requested(ctx), choice, "cond", read)
