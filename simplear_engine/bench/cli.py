"""Measurements for kernel developers: ops, steps, pictures and load, each checked before it is timed.

  list       ops, their implementations and what is timed of them
  op         single ops beside a plain read of memory
  step       a whole decode step beside what the machine could do at best
  image      seconds to a picture from a cold process, and pictures a second in batches
  serve      one engine under load: pictures a second and latency

`python -m simplear_engine.bench COMMAND --help` has examples. Give the machine nothing else to do: the heading of every
table says how loaded it was. A kernel of your own is compared by `simplear_engine.bench.compare`; see
docs/benchmarking.md.
"""

import argparse
import json
import sys

from simplear_engine.errors import InternalError, InvalidRequestError, SimplearError

EXIT_WRONG = 1  # something did not pass its check
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Mistakes are typed errors of one line, as they are everywhere else."""

    def error(self, message: str):
        raise InvalidRequestError(f"{message}; {self.prog} --help explains")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser().parse_args(arguments)
        if options.command == "list":
            from simplear_engine.bench import ops

            rows = ops.known_ops()
            print(json.dumps({"benchmark": "list", "rows": rows}) if options.json else "\n".join(ops.list_lines(rows)))
            return 0
        return _measure(options, arguments)
    except (SimplearError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG if isinstance(error, InternalError) else EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _measure(options, arguments: list[str]) -> int:
    from simplear_engine.bench import results

    if options.against:
        from simplear_engine.bench import against

        found = against.run(options, arguments)
        told = against.lines(found)
    else:
        module = _commands()[options.command]
        if getattr(options, "plot", None) is not None:
            from simplear_engine.bench import plots

            plots.load_pyplot()
            results.results_folder(options.plot)
        if options.save is not None:
            results.results_folder(options.save)
        found = module.run(options)
        told = [results.heading(found), *module.lines(found)]
    # With --json the table still goes somewhere: numbers without it are hard to believe.
    print("\n".join(told), file=sys.stderr if options.json else sys.stdout)
    if options.save is not None:
        print(f"saved to {results.save(found, results.results_folder(options.save))}", file=sys.stderr)
    if getattr(options, "plot", None) is not None:
        for path in module.plot(found, results.results_folder(options.plot)):
            print(f"plotted {path}", file=sys.stderr)
    if options.json:
        print(json.dumps(found))
    return EXIT_WRONG if any("error" in row for row in found["rows"]) else 0


def _commands() -> dict:
    from simplear_engine.bench import image, ops, serve, step

    return {"op": ops, "step": step, "image": image, "serve": serve}


_HELP = {
    "op": "time one op, or all",
    "step": "time whole decode steps",
    "image": "time pictures, from a cold process and in batches",
    "serve": "time pictures under load from many threads",
}


def _parser() -> _Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m simplear_engine.bench", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="ops, their implementations and what is timed of them")
    listing.add_argument("--json", action="store_true", help="one JSON document, the names of all cases in it")
    for name, module in _commands().items():
        command = commands.add_parser(
            name, help=_HELP[name], description=module.__doc__, epilog=module.EXAMPLES, formatter_class=raw
        )
        module.add_arguments(command)
        command.add_argument("--threads", type=int, help="default: physical cores")
        command.add_argument("--json", action="store_true", help="one JSON document on stdout, the table on stderr")
        command.add_argument(
            "--save", nargs="?", const="", metavar="FOLDER",
            help="append the document to a file of this machine, day and command (default: benchmarks/results)",
        )  # fmt: skip
        if hasattr(module, "plot"):
            command.add_argument(
                "--plot", nargs="?", const="", metavar="FOLDER", help="draw it as PNG; needs the extra `bench`"
            )
        command.add_argument("--against", metavar="REV", help="the same with that git revision, in turns: the ratio")
        command.add_argument("--pairs", default="3", help="with --against: runs of each side (default: 3)")
    return parser
