"""`--against REV`: the same benchmark on another revision of this tree and on this one, in turns.

The other revision is unpacked and built once in a folder of the user's cache, with an environment of its own, and found
there the next time. Each side is a process of its own, and both draw their inputs from the same seeds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from simplear_engine.bench import arguments as checked
from simplear_engine.bench import progress, results
from simplear_engine.bench.machine import source_tree
from simplear_engine.errors import InvalidRequestError, UnsupportedError

# Options of this side only, and how many values each takes at most.
_OURS = {"--against": 1, "--pairs": 1, "--save": 1, "--plot": 1, "--json": 0}


def run(options, arguments: list[str]) -> dict:
    (pairs,) = checked.integers("--pairs", options.pairs, 1, 100, one=True)
    if getattr(options, "plot", None) is not None:
        raise InvalidRequestError("--plot, --against: expected one of the two")
    command = passed_on(arguments)
    sides = {"theirs": installed(options.against), "ours": Path(sys.executable)}
    found: dict[str, list[dict]] = {side: [] for side in sides}
    with progress.bar(total=2 * pairs, desc=f"{options.command} in turns") as bar:
        for pair in range(pairs):
            # Who goes first changes, so that a drift in one direction favours nobody.
            for side in sorted(sides, reverse=bool(pair % 2)):
                found[side].append(document_of(sides[side], command, options.against if side == "theirs" else "this"))
                bar.update()
    return joined(found, options.against)


def passed_on(arguments: list[str]) -> list[str]:
    """The command line without the options that are for this process."""
    kept, skip = [], 0
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name in _OURS:
            skip = 0 if equals else _OURS[name]
        elif skip and not argument.startswith("-"):
            skip -= 1
        else:
            kept.append(argument)
            skip = 0
    return kept


def document_of(python: Path, command: list[str], name: str) -> dict:
    ended = subprocess.run(
        [str(python), "-m", "simplear_engine.bench", *command, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    try:
        found = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise UnsupportedError(f"revision {name}: `bench {' '.join(command)}` gave no numbers: {last}") from None
    # The first bench knew single ops only and printed rows without a document around them.
    return found if isinstance(found, dict) else {"rows": found}


def joined(found: dict[str, list[dict]], revision: str) -> dict:
    """A document whose rows hold the medians of both sides and the ratio of each pair of runs, theirs over ours."""
    first = found["ours"][0]
    metric = first["metric"]
    by_key = {
        side: [{results.key_of(first, row): row.get(metric) for row in document["rows"]} for document in documents]
        for side, documents in found.items()
    }
    rows = []
    for row in first["rows"]:
        key = results.key_of(first, row)
        ours, theirs = ([values.get(key) for values in by_key[side]] for side in ("ours", "theirs"))
        if any(value is None for value in [*ours, *theirs]):
            rows.append({**dict(zip(first["key"], key, strict=True)), "missing": True})
            continue
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            {
                **dict(zip(first["key"], key, strict=True)),
                "ours": statistics.median(ours),
                "theirs": statistics.median(theirs),
                "ratio": statistics.median(ratios),
                "lowest_ratio": min(ratios),
                "highest_ratio": max(ratios),
            }
        )
    return {
        "benchmark": f"{first['benchmark']}-against",
        "machine": first["machine"],
        "against": revision,
        "key": first["key"],
        "metric": metric,
        "rows": rows,
    }


def lines(document: dict) -> list[str]:
    told = [
        results.heading(document),
        f"{document['metric']} of this tree and of {document['against']}; ratio above 1: this tree is faster",
    ]
    for row in document["rows"]:
        name = " ".join(str(row[field]) for field in document["key"])
        if "missing" in row:
            told.append(f"{name:<80} not timed on both sides")
            continue
        told.append(
            f"{name:<80} {row['ours']:>10.3f} {row['theirs']:>10.3f}   ratio {row['ratio']:.3f} "
            f"({row['lowest_ratio']:.3f} to {row['highest_ratio']:.3f})"
        )
    return told


def installed(revision: str) -> Path:
    """The Python of an environment that has this revision built, made now if need be."""
    if source_tree() is None:
        raise UnsupportedError("--against needs the package to be installed in place, in a git checkout")
    commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        raise InvalidRequestError(f"--against: no git revision named {revision!r}")
    folder = cache_folder() / commit[:16]
    python = folder / ".venv" / "bin" / "python"
    if (folder / ".venv" / "installed").exists():
        return python
    _unpack(commit, folder)
    print(f"building {revision} in {folder}; this takes minutes, once", file=sys.stderr)
    log = folder / "build.log"
    with log.open("w") as output:
        command = ["make", "-C", str(folder), ".venv/installed", f"PYTHON={sys.executable}"]
        if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode != 0:
            raise UnsupportedError(f"--against: {revision} does not build; {log} says why")
    return python


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "simplear-engine" / "bench"


def _unpack(commit: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as archive:
        subprocess.run(["git", "-C", str(source_tree()), "archive", commit], stdout=archive, check=True)
        archive.seek(0)
        subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive, check=True)


def _git(*command: str) -> str | None:
    ended = subprocess.run(["git", "-C", str(source_tree()), *command], capture_output=True, text=True)
    return ended.stdout.strip() if ended.returncode == 0 else None
