"""Pictures as codes with their captions, on disk: shards that are mapped, checked and read in any order.

    FOLDER/index.json                  {"format": 1, "num_codes": 4096, "shards": [{"file", "samples", "grid", "sha256"}]}
    FOLDER/shard-00000.safetensors     codes uint16 or int32 [n, h, w]; captions uint8 [m], JSON lists of wordings end to
                                       end; caption_ends int64 [n]

A sample is a few kilobytes, so a shard holds thousands and the mapping reads only what is asked for: a data set larger
than memory needs nothing else. Every shard's SHA-256 stands in the index, and a shard that does not have it is refused
by name. Nothing here knows about text tokenizers or training.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.safetensors_file import read_safetensors
from simplear_engine.strict_json import read_json_object

FORMAT = 1
INDEX = "index.json"
ORIGIN = "origin.json"
SAMPLES_PER_SHARD = 8192


@dataclass(frozen=True)
class ShardEntry:
    file: str
    samples: int
    grid: tuple[int, int]
    sha256: str


def begin_set(folder: Path, origin: dict, name: str = ORIGIN, parts: str = "shard-*.safetensors") -> None:
    """Makes `folder` the place of a set that comes from `origin` (JSON values), which the file `name` says. Shards, or other
    `parts` (a pattern), of that origin belong to it where they are there already; InvalidRequestError where they come from
    elsewhere, or nobody knows from where."""
    path, text = folder / name, json.dumps(origin, indent=1, sort_keys=True) + "\n"
    if any(folder.glob(parts)) and not (path.exists() and path.read_text() == text):
        stored = read_json_object(path) if path.exists() else {}
        other = [key for key, value in json.loads(text).items() if stored.get(key) != value]
        raise InvalidRequestError(
            f"{folder}: holds tokens of something else ({name}: other {', '.join(other)}); choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        file.write(text.encode())


class ShardWriter:
    """Collects samples into shards; use it as a context manager, the index is written last.

    `first` is the number of the first shard: processes that write into one folder take ranges of their own, pass
    `index=False`, and one of them calls `write_index` when all have finished.
    """

    def __init__(
        self, folder: Path, num_codes: int, samples_per_shard: int = SAMPLES_PER_SHARD, first: int = 0,
        index: bool = True,
    ):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.num_codes, self.samples_per_shard = folder, num_codes, samples_per_shard
        self.number, self.index = first, index
        self.codes: list[np.ndarray] = []
        self.captions: list[bytes] = []

    def add(self, codes: np.ndarray, wordings: Sequence[str]) -> None:
        """codes: ints [h, w]. Pictures of another grid than the last one begin a new shard."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or codes.size == 0:
            raise InvalidRequestError(f"codes: expected integers [h, w], got {codes.dtype} {list(codes.shape)}")
        if codes.min() < 0 or codes.max() >= self.num_codes:
            raise InvalidRequestError(f"codes: expected 0..{self.num_codes - 1}, got {codes.min()}..{codes.max()}")
        if not wordings or not all(isinstance(w, str) for w in wordings):
            raise InvalidRequestError(f"wordings: expected at least one string, got {wordings!r:.80}")
        if self.codes and self.codes[-1].shape != codes.shape:
            self.flush()
        self.codes.append(codes.astype(np.uint16 if self.num_codes <= 1 << 16 else np.int32))
        self.captions.append(json.dumps(list(wordings), ensure_ascii=False).encode())
        if len(self.codes) == self.samples_per_shard:
            self.flush()

    def flush(self) -> None:
        if not self.codes:
            return
        from safetensors.numpy import save

        tensors = {
            "codes": np.stack(self.codes),
            "captions": np.frombuffer(b"".join(self.captions), np.uint8),
            "caption_ends": np.cumsum([len(c) for c in self.captions], dtype=np.int64),
        }
        with atomic_writer(self.folder / f"shard-{self.number:05d}.safetensors") as file:
            file.write(save(tensors, {"num_codes": str(self.num_codes)}))
        self.number += 1
        self.codes, self.captions = [], []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
            if self.index:
                write_index(self.folder, self.num_codes)


def write_index(folder: Path, num_codes: int) -> None:
    """Lists the folder's shards with their checksums."""
    shards = []
    for path in sorted(folder.glob("shard-*.safetensors")):
        codes = read_safetensors(path)[0]["codes"].data
        shards.append(asdict(ShardEntry(path.name, codes.shape[0], codes.shape[1:], sha256_of(path))))
    if not shards:
        raise InvalidRequestError(f"{folder}: holds no shard-*.safetensors to list")
    with atomic_writer(folder / INDEX) as file:
        text = json.dumps({"format": FORMAT, "num_codes": num_codes, "shards": shards}, indent=1)
        file.write(text.encode() + b"\n")


class TokenSet:
    """The samples of a folder: `codes(i)` int32 [h, w], `wordings(i)` list of str."""

    def __init__(self, folder: Path, verify: bool = True):
        index = read_json_object(folder / INDEX)
        if index.get("format") != FORMAT:
            raise CheckpointError(f"{folder / INDEX}: format: expected {FORMAT}, found {index.get('format')!r}")
        try:
            self.folder, self.num_codes = folder, int(index["num_codes"])
            self.shards = [ShardEntry(s["file"], s["samples"], tuple(s["grid"]), s["sha256"]) for s in index["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / INDEX}: damaged: {type(error).__name__}: {error}") from None
        if not self.shards:
            raise CheckpointError(f"{folder / INDEX}: shards: expected at least one, found none")
        self._ends = np.cumsum([shard.samples for shard in self.shards])
        self._tensors = []
        for shard in self.shards:
            path = folder / shard.file
            if not path.is_file():
                raise CheckpointError(f"{path}: missing, although {INDEX} lists it")
            if verify and sha256_of(path) != shard.sha256:
                raise CheckpointError(f"{path}: damaged, its SHA-256 is not the one in {INDEX}")
            tensors = {name: stored.data for name, stored in read_safetensors(path)[0].items()}
            if absent := {"codes", "captions", "caption_ends"} - tensors.keys():
                raise CheckpointError(f"{path}: expected codes, captions and caption_ends; {min(absent)} is missing")
            if tensors["codes"].shape != (shard.samples, *shard.grid):
                expected = [shard.samples, *shard.grid]
                raise CheckpointError(f"{path}: codes: expected {expected}, found {list(tensors['codes'].shape)}")
            self._tensors.append(tensors)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def num_tokens_at_most(self) -> np.ndarray:
        """int64 [n]: codes of each sample and bytes that its wordings take, of which a text token has at least one."""
        return np.concatenate([
            np.diff(tensors["caption_ends"], prepend=0) + shard.grid[0] * shard.grid[1]
            for shard, tensors in zip(self.shards, self._tensors)
        ])  # fmt: skip

    def _locate(self, i: int) -> tuple[dict[str, np.ndarray], int]:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return self._tensors[shard], int(i - (self._ends[shard] - self.shards[shard].samples))

    def codes(self, i: int) -> np.ndarray:
        tensors, row = self._locate(i)
        return tensors["codes"][row].astype(np.int32)

    def wordings(self, i: int) -> list[str]:
        tensors, row = self._locate(i)
        begin = int(tensors["caption_ends"][row - 1]) if row else 0
        return json.loads(tensors["captions"][begin : int(tensors["caption_ends"][row])].tobytes())


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
