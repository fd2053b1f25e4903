"""SimpleAR's own files: lists of pictures with captions, and one pair of small files for each tokenised picture.

    list      [{"image_path": ..., "caption": "..." or ["...", ...]}, ...] in one .json; several as /data/{a,b}.json; or a
              .yaml with  datasets: [{json_path: ..., sampling_strategy: "random:10%"}, ...]
    tokens    FOLDER/512_codes/0.npy     int32 [1, 1, h, w]
              FOLDER/512_labels/0.npy    plain text in spite of its name: one wording a line

Whatever cannot be read is an error with the file's name; who reads many of them decides what to do about one.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.errors import InvalidRequestError

from .mixture import choose


def read_list(path: str, seed: int = 0) -> list[dict]:
    """The entries of a list, checked: {"image_path": str, "caption": [str, ...]}."""
    if path.endswith((".yaml", ".yml")):
        try:
            import yaml
        except ImportError as error:
            raise InvalidRequestError(f"{path}: reading it needs PyYAML: pip install pyyaml") from error
        entries = []
        for source in yaml.safe_load(Path(path).read_text())["datasets"]:
            part = read_list(source["json_path"], seed)
            entries += [part[i] for i in choose(source.get("sampling_strategy", "all"), len(part), seed)]
        return entries
    braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
    if braces:
        before, names, after = braces.groups()
        return list(itertools.chain.from_iterable(read_list(before + name + after) for name in names.split(",")))
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{path}: expected a JSON list of pictures: {error}") from None
    entries = []
    for number, value in enumerate(values):
        try:
            captions = value["caption"] if isinstance(value["caption"], list) else [value["caption"]]
            if (
                not captions
                or not all(isinstance(c, str) for c in captions)
                or not isinstance(value["image_path"], str)
            ):
                raise TypeError
        except (KeyError, TypeError):
            expected = 'expected {"image_path": str, "caption": str or list of str}'
            raise InvalidRequestError(f"{path}: entry {number}: {expected}, found {value!r:.80}") from None
        entries.append({"image_path": value["image_path"], "caption": captions})
    return entries


def code_path(folder: Path, resolution: int, number: int) -> Path:
    return folder / f"{resolution}_codes" / f"{number}.npy"


def label_path(folder: Path, resolution: int, number: int) -> Path:
    return folder / f"{resolution}_labels" / f"{number}.npy"


def write_sample(folder: Path, resolution: int, number: int, codes: np.ndarray, wordings: list[str]) -> None:
    """codes: ints [h, w]."""
    for path in (code_path(folder, resolution, number), label_path(folder, resolution, number)):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(" ".join(wording.split("\n")) for wording in wordings)
    label_path(folder, resolution, number).write_text(text, encoding="utf-8")
    # Last, because a number counts as done when its codes are there.
    with atomic_writer(code_path(folder, resolution, number)) as file:
        np.save(file, np.asarray(codes, np.int32)[None, None])


def read_sample(folder: Path, resolution: int, number: int) -> tuple[np.ndarray, list[str]]:
    """(codes int32 [h, w], wordings); ValueError or OSError where a file is missing or damaged."""
    codes = np.load(code_path(folder, resolution, number), allow_pickle=False)
    if codes.dtype.kind not in "iu" or codes.ndim != 4 or codes.shape[:2] != (1, 1):
        raise ValueError(f"expected codes int [1, 1, h, w], found {codes.dtype} {list(codes.shape)}")
    lines = label_path(folder, resolution, number).read_text(encoding="utf-8").splitlines()
    wordings = [line.strip() for line in lines if line.strip()]
    if not wordings:
        raise ValueError(f"expected a caption in {label_path(folder, resolution, number)}, found none")
    return codes[0, 0].astype(np.int32), wordings


def sample_numbers(folder: Path, resolution: int) -> list[int]:
    names = [path.stem for path in (folder / f"{resolution}_codes").glob("*.npy")]
    return sorted(int(name) for name in names if name.isdigit())
