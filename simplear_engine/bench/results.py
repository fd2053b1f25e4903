"""What a benchmark found, as one JSON document, and where such documents are kept.

Every command gives {"benchmark", "machine", "key", "metric", "rows", ...}: `key` names the fields that tell rows apart,
`metric` the one to compare between two runs; more of it is less good. The table on the screen is made from the
document, so it shows nothing that the document lacks.
"""

import json
from pathlib import Path

from simplear_engine.bench.machine import cpu_slug, describe, source_tree
from simplear_engine.errors import InvalidRequestError


def document(benchmark: str, backend, rows: list[dict], key, metric: str, **more) -> dict:
    found = {"benchmark": benchmark, "machine": describe(backend), "key": list(key), "metric": metric}
    return {**found, **more, "rows": rows}


def heading(found: dict) -> str:
    machine = found["machine"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, load {machine['load_before']}, "
        f"{machine['revision'] or machine['engine']}"
    )


def key_of(found: dict, row: dict) -> tuple:
    return tuple(row.get(field) for field in found["key"])


def results_folder(asked: str) -> Path:
    """The folder that --save or --plot named, or the source tree's own."""
    if asked:
        return Path(asked)
    if source_tree() is None:
        raise InvalidRequestError("--save, --plot: this package is not installed in place, so name a folder")
    return source_tree() / "benchmarks" / "results"


def stem(found: dict) -> str:
    return f"{cpu_slug()}-{found['machine']['date'][:10]}-{found['benchmark']}"


def save(found: dict, folder: Path) -> Path:
    """Appends the document as a line to the file of this machine, day and command."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem(found)}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")
    return path
