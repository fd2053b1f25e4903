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
    """The entries of a list, checked: {"image_path": str, "caption": [str, ...]}. InvalidRequestError names the list."""
    if path.endswith((".yaml", ".yml")):
        try:
            import yaml
        except ImportError as error:
            raise InvalidRequestError(f"{path}: reading it needs PyYAML: pip install pyyaml") from error
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            sources = [(s["json_path"], s.get("sampling_strategy", "all")) for s in values["datasets"]]
            if not all(isinstance(word, str) for source in sources for word in source):
                raise TypeError("json_path and sampling_strategy are strings")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            expected = "expected datasets: [{json_path: ..., sampling_strategy: ...}, ...]"
            fault = (str(error).splitlines() or [""])[0]  # of YAML's faults, which take several lines
            raise InvalidRequestError(f"{path}: {expected}: {type(error).__name__}: {fault}") from None
        entries = []
        for json_path, strategy in sources:
            part = read_list(json_path, seed)
            entries += [part[i] for i in choose(strategy, len(part), seed)]
        return entries
    braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
    if braces:
        before, names, after = braces.groups()
        return list(itertools.chain.from_iterable(read_list(before + name + after) for name in names.split(",")))
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path}: expected a JSON list of pictures: {error}") from None
    if not isinstance(values, list):
        raise InvalidRequestError(f"{path}: expected a JSON list of pictures, found {values!r:.80}")
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
    try:
        codes = np.load(code_path(folder, resolution, number), allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever NumPy's parsers of headers and archives stumbled over
        raise ValueError(f"expected an array, found none: {type(error).__name__}: {error}") from None
    if not isinstance(codes, np.ndarray):
        raise ValueError("expected an array, found an archive of them")
    if codes.dtype.kind not in "iu" or codes.ndim != 4 or codes.shape[:2] != (1, 1) or not codes.size:
        raise ValueError(f"expected codes int [1, 1, h, w], found {codes.dtype} {list(codes.shape)}")
    if codes.min() < 0 or codes.max() > np.iinfo(np.int32).max:
        raise ValueError(f"expected codes of 31 bits, found {codes.min()}..{codes.max()}")
    # Only "\n" ends a wording: other marks that Python ends lines at stand in captions, too.
    lines = label_path(folder, resolution, number).read_bytes().decode("utf-8").split("\n")
    wordings = [line.strip() for line in lines if line.strip()]
    if not wordings:
        raise ValueError(f"expected a caption in {label_path(folder, resolution, number)}, found none")
    return codes[0, 0].astype(np.int32), wordings


def sample_numbers(folder: Path, resolution: int) -> list[int]:
    """InvalidRequestError where two names could be one number."""
    names = [path.stem for path in (folder / f"{resolution}_codes").glob("*.npy") if path.stem.isdigit()]
    if odd := sorted(name for name in names if not name.isdecimal() or name != str(int(name))):
        raise InvalidRequestError(f"{folder / f'{resolution}_codes'}: expected names such as 7.npy, found {odd[0]}.npy")
    return sorted(map(int, names))
