"""How the runner talks to a peer's process: lines of JSON, one question and one answer at a time.

    {"run": 64}  ->  {"ms": [21.3, ...], "tokens": [[...], [...]]}

A peer's libraries may print what they like: the peer's end moves the channel away from standard output first. While a
process does not have its turn it is stopped, with everything it started, so that no spinning thread of it takes a core
from the one that is measured. Knows no engine.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path


class PeerError(Exception):
    """A peer did not do what it was asked; the text is the reason that the table shows."""


def open_channel():
    """A peer's end: standard output as a stream of its own; whatever else is printed goes to standard error."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def answer(channel, message: dict) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def parse_line(line: bytes) -> dict | None:
    """The message in a line, or None where the line is something else."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def last_error(log: str) -> str:
    """The line of a log that says best why a process ended: the last exception or error, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(error|exception)\b", line, re.IGNORECASE)]
    return (errors or lines or ["it printed nothing"])[-1][:200]


class Peer:
    """The runner's end: one live process, stopped except during its turns."""

    def __init__(self, command: list[str], environment: dict[str, str], cwd, log_path):
        self.log_path = log_path
        self._log = open(log_path, "wb")
        self._process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip
        os.set_blocking(self._process.stdout.fileno(), False)
        self._buffer = b""

    def wait_ready(self, timeout_s: float) -> dict:
        """What the process says when it has loaded and warmed up; it is stopped from then on."""
        ready = self._read(timeout_s)
        self._signal(signal.SIGSTOP)
        return ready

    def ask(self, question: dict, timeout_s: float) -> dict:
        """The process's turn: it runs from here until its answer is there."""
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            return self._read(timeout_s)
        except OSError as error:
            raise PeerError(self._last_words(f"ended: {error}")) from error
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends the process and everything it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            try:
                stream.close()
            except OSError:
                pass

    def _read(self, timeout_s: float) -> dict:
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                while b"\n" in self._buffer:
                    line, self._buffer = self._buffer.split(b"\n", 1)
                    message = parse_line(line)
                    if message is not None:
                        return message
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise PeerError(f"gave no answer within {timeout_s:.0f} s")
                if selector.select(remaining):
                    chunk = self._process.stdout.read()
                    if chunk == b"":
                        raise PeerError(self._last_words(f"ended with exit status {self._process.wait()}"))
                    self._buffer += chunk or b""

    def _last_words(self, what: str) -> str:
        """`what`, and what the process's log says about it."""
        return f"{what}: {last_error(Path(self.log_path).read_text(errors='replace'))}"

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass
