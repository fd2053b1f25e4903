"""The checkpoints that are measured: somebody's own, the embedded one, or random weights of a size."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

from simplear_engine.bench import progress
from simplear_engine.errors import InvalidRequestError
from simplear_engine.testing.random_checkpoint import SIZES, write_random_checkpoint


@contextmanager
def model_folder(size: str | None, model: str | None, default: str, image_tokenizer: bool = False):
    """(folder, name) of the one that --size or --model named; random weights live as long as the context does."""
    from simplear_engine.checkpoint import resolve

    if size and model:
        raise InvalidRequestError("--size, --model: expected one of the two")
    name = size or model or default
    if name not in SIZES:
        yield resolve(name), name
        return
    with tempfile.TemporaryDirectory(prefix="simplear-bench-") as folder:
        with progress.bar(total=1, desc=f"writing random {name} weights") as bar:
            write_random_checkpoint(folder, name, image_tokenizer=image_tokenizer)
            bar.update()
        yield Path(folder), name
