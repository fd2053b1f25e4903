"""A Python environment for each peer, made once: pinned packages, nobody else's.

An environment is known by what it was made from; a change of the list makes a new one. Output of pip goes to a log.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from peers.protocol import last_error


class InstallError(Exception):
    """The text is the reason that the table shows."""


def python_of(module, work: Path) -> Path:
    """The interpreter that runs a peer; its environment is made if it is not there. Raises InstallError."""
    if module.REQUIREMENTS is None:
        return Path(sys.executable)
    name = module.__name__.rpartition(".")[2]
    folder = work / "venvs" / name
    python, stamp = folder / "bin" / "python", folder / "made-from.json"
    wanted = {"requirements": list(module.REQUIREMENTS), "python": list(sys.version_info[:2])}
    build = dict(getattr(module, "BUILD_ENVIRONMENT", ()))
    if build:
        wanted["build"] = build
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    log = work / "logs" / f"{name}-install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # What pip compiled before may have been compiled otherwise.
    no_cache = ["--no-cache-dir"] if build else []
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", *no_cache, *module.REQUIREMENTS]
    # Some are compiled here; two jobs leave the machine usable.
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": "2", **os.environ, **build}
    with open(log, "w") as output:
        for command in ([sys.executable, "-m", "venv", folder], pip, *_removals(module, python)):
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            if done.returncode:
                raise InstallError(f"does not install: {last_error(log.read_text(errors='replace'))}")
    stamp.write_text(json.dumps(wanted) + "\n")
    return python


def _removals(module, python: Path) -> list[list]:
    unwanted = getattr(module, "UNWANTED", ())
    return [[python, "-m", "pip", "uninstall", "--yes", *unwanted]] if unwanted else []
