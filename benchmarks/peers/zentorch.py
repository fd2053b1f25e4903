"""transformers under torch.compile with zentorch, AMD's backend for its own processors.

    python -m peers.zentorch serve --work DIR --weights bf16

Everything but the backend is as in transformers_compile.py.
"""

import sys
from pathlib import Path

from peers import peer, transformers_compile
from peers.peer import Variant
from peers.transformers_compile import convert  # noqa: F401

TITLE = "transformers, zentorch"
PACKAGE = "zentorch"
REQUIREMENTS = ("zentorch==2.13.0.2", *transformers_compile.REQUIREMENTS)
VARIANTS = {"bf16": Variant("bf16")}


def unavailable() -> str | None:
    try:
        vendor = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "made for AMD processors"
    return None if "AuthenticAMD" in vendor else "made for AMD processors"


class Model(transformers_compile.Model):
    backend = "zentorch"

    def __init__(self, *arguments):
        import zentorch  # noqa: F401

        super().__init__(*arguments)


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
