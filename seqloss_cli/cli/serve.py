"""`seqloss serve`: the engine behind HTTP, in the shapes of vLLM and OpenAI."""

from __future__ import annotations

from socket import IPPROTO_TCP, TCP_NODELAY
from threading import Thread

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import say
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError, load_extra
from seqloss_cli.core.options import SERVER, command_record, option


@command_record
class ServeSettings:
    """The address of a server, and what it takes at most."""

    PANEL = SERVER

    host: str = option("127.0.0.1", "Address to listen on; another than loopback needs a key.")
    port: int = option(8000, "Port to listen on; 0: any that is free.", min=0, max=65535)
    api_key_file: str | None = option(
        None, "File with the key that clients must send; else SEQLOSS_API_KEY.", metavar="FILE"
    )
    longest_queue: int = option(256, "Rows that may wait; more are answered by 429.", min=1)
    most_bytes: int = option(8 << 20, "Longest request.", min=1)
    most_alternatives: int = option(20, "Most alternatives that a request may ask for.", min=1)
    request_timeout: float = option(600.0, "Seconds that a request may wait and take.")


@o.with_options(
    ServeSettings,
    p.ModelChoice,
    p.TokenPolicy,
    o.only(p.WindowChoice, "context"),
    o.only(p.BatchPolicy, "tokens"),
    p.SpeedPolicy,
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def serve(ctx: typer.Context) -> None:
    """Serve a model: log-probabilities of prompts over HTTP, by the exact engine.

    POST /v1/completions takes vLLM's prompt_logprobs and OpenAI's echo with logprobs, with ids or
    texts; max_tokens is 0 or 1. Other programs can score with any checkpoint that is loaded here,
    and `seqloss score --engine URL` starts in a second.

    Examples:
        seqloss serve --model demo
        seqloss score README.md --engine http://127.0.0.1:8000
        seqloss serve --port 9000 --batch-tokens auto --context 1024

    """
    from seqloss_cli.cli.settings import load_scorer

    uvicorn = load_extra("serve", "seqloss serve", "uvicorn", "starlette")
    from seqloss_cli.backends.server.transport import LOOPBACK, read_key
    from seqloss_cli.service.app import Service
    from seqloss_cli.service.requests import ServiceLimits, model_name

    settings = o.given(ctx, ServeSettings)
    key = read_key(settings.api_key_file)
    if settings.host not in LOOPBACK and key is None:
        raise UsageError(
            f"--host {settings.host}: others could use the server; give it a key in "
            "SEQLOSS_API_KEY or --api-key-file"
        )
    scorer = load_scorer(ctx, has_prompts=True)
    limits = ServiceLimits(
        longest_queue=settings.longest_queue,
        most_bytes=settings.most_bytes,
        most_alternatives=settings.most_alternatives,
        seconds=settings.request_timeout,
    )
    service = Service(scorer, key, limits, lambda error: say(f"error: {error!r}"))
    config = uvicorn.Config(
        service.app, host=settings.host, port=settings.port, log_level="warning",
        access_log=False, timeout_graceful_shutdown=30, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    # Connections have it from here: asyncio sets it only where the socket names its protocol, and
    # without it each answer would wait for an acknowledgement, 40 ms.
    socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    say(
        f"serving {model_name(scorer)} at http://{settings.host}:{socket.getsockname()[1]} "
        "(Ctrl-C stops)"
    )

    def listen() -> None:
        try:
            server.run(sockets=[socket])
        finally:
            service.queue.close()  # nobody would send a row any more

    thread = Thread(target=listen, name="listening")
    # Rows are scored on the main thread, whose memory the C library keeps: on another one large
    # arrays are given back and taken anew, which costs 4 % of the time.
    with server.capture_signals():
        thread.start()
        service.queue.run()
        thread.join()
