"""`python -m simplear_engine` is the `simplear` command."""

import sys

from simplear_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
