"""Our CPU engine beside other CPU inference engines on the same work, in one command.

    python benchmarks/peers/run.py [--peers a,b] [--weights bf16,int8] [--rounds 7] [--steps 64] [--context 32]
        [--threads 2] [--work DIR] [--json FILE] [--page docs/benchmarks.md] [--prepare]

Each peer gets its own environment and its own form of one random checkpoint under the work folder; both are made once
(--prepare does that and stops). For each weight type all its peers, our engine and the floor are loaded, then take turns,
round after round, everybody else stopped meanwhile. What does not install, load or finish is listed with its reason.
Give the machine nothing else to do. The last line of the output is JSON. Run it with the Python our engine is
installed in.
"""

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
# As a script, this folder is where imports are looked up first; some peers' scripts are named like their libraries.
sys.path[0] = str(BENCHMARKS)

from peers import table
from peers.environments import InstallError, python_of
from peers.protocol import Peer, PeerError, last_error, parse_line
from peers.table import FLOOR, OURS, Row

PEERS = (
    OURS, FLOOR, "llama_cpp", "onnxruntime_genai", "openvino", "transformers_compile", "zentorch", "ctranslate2",
    "vllm_cpu",
)  # fmt: skip
CONVERT_TIMEOUT_S, READY_TIMEOUT_S, RUN_TIMEOUT_S = 1800, 1200, 300


def main() -> None:
    options = parse_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    # Ended from outside, it must not leave stopped processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    write_checkpoint(options)
    rows = prepare(options)
    if options.prepare:
        for row in rows:
            say(f"{row.title}, {row.weights}: {row.reason or 'ready'}")
        return
    options.load_average = os.getloadavg()[0]
    if options.load_average > 0.5:
        say(f"warning: the load average is {options.load_average:.1f}; the numbers will be those of a busy machine")
    for weights in options.weights:
        measure([row for row in rows if row.weights == weights and not row.reason], options)
    report(rows, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=names(PEERS), default=PEERS, help=f"of {','.join(PEERS)}")
    parser.add_argument("--weights", type=names(table.WEIGHT_TYPES), default=table.WEIGHT_TYPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=64, help="steps of a turn")
    parser.add_argument("--context", type=int, default=32, help="tokens of either prompt")
    parser.add_argument("--threads", type=int, default=2)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--work", type=Path, default=cache / "simplear-peers", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    parser.add_argument("--page", type=Path, help="a page whose part between the markers becomes the table")
    parser.add_argument("--prepare", action="store_true", help="install and convert, measure nothing")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


def names(known):
    def parse(text: str) -> tuple[str, ...]:
        wanted = tuple(text.split(","))
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, got {','.join(unknown)}")
        return wanted

    return parse


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- making ready


def write_checkpoint(options) -> None:
    """The checkpoint and the tokens that float32 draws from it, by our engine's Python."""
    command = [sys.executable, "-m", "peers.checkpoint", options.work, "--context", str(options.context)]
    if subprocess.run(command, cwd=BENCHMARKS).returncode:
        sys.exit("the random checkpoint could not be written: run this with the Python that simplear-engine is in")


def prepare(options) -> list[Row]:
    """A row for each peer and weight type, installed and converted, or with the reason why not."""
    rows = []
    for name in options.peers:
        module = importlib.import_module(f"peers.{name}")
        for weights in options.weights:
            if variant := module.VARIANTS.get(weights):
                rows.append(Row(name, module.TITLE, weights, variant.stored))
            elif reason := getattr(module, "ABSENT", {}).get(weights):
                rows.append(Row(name, module.TITLE, weights, "", reason=reason))
        mine = [row for row in rows if row.peer == name and not row.reason]
        try:
            if reason := getattr(module, "unavailable", lambda: None)():
                raise InstallError(reason)
            if mine:
                say(f"{module.TITLE}: environment")
                python_of(module, options.work)
        except InstallError as error:
            for row in mine:
                row.reason = str(error)
            continue
        for row in mine:
            row.reason = convert(module, row, options)
    return rows


def convert(module, row: Row, options) -> str | None:
    """Has the peer make its form of the checkpoint; why it could not, or None."""
    if (options.work / "models" / row.peer / row.weights).exists():
        return None
    say(f"{row.title}, {row.weights}: conversion")
    log = log_path(options, row, "convert")
    command, environment = command_of(module, row, options, "convert")
    with open(log, "wb") as errors:
        try:
            done = subprocess.run(
                command, cwd=BENCHMARKS, env=environment, stdout=subprocess.PIPE, stderr=errors,
                timeout=CONVERT_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"conversion took longer than {CONVERT_TIMEOUT_S} s"
    if done.returncode == 0 and any("converted" in (parse_line(line) or {}) for line in done.stdout.splitlines()):
        return None
    return f"conversion fails: {last_error(log.read_text(errors='replace'))}"


def command_of(module, row: Row, options, action: str) -> tuple[list[str], dict[str, str]]:
    command = [
        python_of(module, options.work), "-m", f"peers.{row.peer}", action, "--work", options.work,
        "--weights", row.weights, "--context", options.context, "--steps", options.steps, "--threads", options.threads,
    ]  # fmt: skip
    variant = module.VARIANTS[row.weights]
    # Nothing may look for models elsewhere, and a library that asks the environment gets as many threads as the others.
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    if variant.huge_pages:
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return [str(word) for word in command], environment | dict(variant.environment)


def log_path(options, row: Row, what: str) -> Path:
    folder = options.work / "logs"
    folder.mkdir(exist_ok=True)
    return folder / f"{row.peer}-{row.weights}-{what}.log"


# ---------------------------------------------------------------------- measuring


def measure(rows: list[Row], options) -> None:
    """Loads all rows' peers, lets them take turns, and fills in what they took."""
    reference = json.loads((options.work / "checkpoint" / f"reference-{options.context}.json").read_text())
    live: list[tuple[Row, Peer]] = []
    try:
        for row in rows:
            if peer := start(row, options):
                live.append((row, peer))
        for number in range(options.rounds):
            shift = number % max(1, len(live))
            # Nobody always runs behind the same one.
            for row, peer in live[shift:] + live[:shift]:
                take_turn(row, peer, reference, options)
            say(f"round {number + 1}: " + ", ".join(f"{row.peer} {row.rounds[-1]:.1f}" for row, _ in live))
    finally:
        for _, peer in live:
            peer.close()
    for row in rows:
        if not row.reason and math.isnan(row.median):
            row.reason = "finished no round"


def start(row: Row, options) -> Peer | None:
    module = importlib.import_module(f"peers.{row.peer}")
    command, environment = command_of(module, row, options, "serve")
    peer = Peer(command, environment, BENCHMARKS, log_path(options, row, "serve"))
    try:
        ready = peer.wait_ready(READY_TIMEOUT_S)
    except PeerError as error:
        row.reason = f"does not run: {error}"
        peer.close()
        say(f"{row.title}, {row.weights}: {row.reason}")
        return None
    except BaseException:
        peer.close()
        raise
    row.version = ready["version"]
    say(f"{row.title} {row.version}, {row.weights}: loaded in {ready['load_s']} s")
    return peer


def take_turn(row: Row, peer: Peer, reference: list[list[int]], options) -> None:
    if row.reason:
        row.rounds.append(math.nan)
        return
    try:
        result = peer.ask({"run": options.steps}, RUN_TIMEOUT_S)
    except PeerError as error:
        row.reason = f"stopped working: {error}"
        row.rounds.append(math.nan)
        return
    row.rounds.append(table.round_ms(result["ms"]))
    tokens = result.get("alone") or result.get("tokens")
    row.agreement = table.agreement(tokens, reference)
    row.agreement_of = min(len(reference[0]), len(tokens[0])) if tokens else 0


# ---------------------------------------------------------------------- telling


def report(rows: list[Row], options) -> None:
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads"
    setting = (
        f"{machine}; prompt {options.context} tokens, {options.steps} steps a turn, {options.rounds} rounds; "
        f"{datetime.date.today():%Y-%m-%d}."
    )
    text = f"{setting}\n\n{table.to_markdown(rows)}"
    print(text)
    measured = {
        "benchmark": "peers",
        "machine": machine,
        "context": options.context,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "load_average_before": round(options.load_average, 2),
        "peers": table.to_json(rows),
    }
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")
    if options.page:
        options.page.write_text(table.insert(options.page.read_text(), text))
    print(json.dumps(measured))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
