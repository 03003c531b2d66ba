"""Run by an environment with the `openai` package: requests of a real client, as JSON on stdout.

The first argument is the base URL; on stdin are the keywords of each completion. Answered are the
listed models, and of each request its answer or the status and message of its error.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    from openai import APIStatusError, OpenAI

    client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
    answers: list[Any] = []
    for keywords in json.load(sys.stdin):
        try:
            answers.append(client.completions.create(**keywords).model_dump())
        except APIStatusError as error:
            answers.append({"status": error.status_code, "message": error.message})
    models = [model.model_dump() for model in client.models.list()]
    json.dump({"models": models, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
