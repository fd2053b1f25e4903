import sys

from simplear_engine.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
