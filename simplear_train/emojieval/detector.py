"""Finds emoji in pictures of 128 x 128 pixels: class, confidence, colour and box of each.

A picture becomes 16 x 16 cells. Each cell says whether the centre of an object lies in it, which class that would be,
which of six colours, and where exactly its box lies (an anchor-free detector of the CenterNet family; 0.6 M
parameters). What a picture is expected to show is nowhere an input. Weights come from train_detector.py.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplear_engine.errors import CheckpointError, InvalidRequestError

from ..concepts import COLOURS, CONCEPTS
from .rules import Detection

SIDE, STRIDE = 128, 8
CELLS = SIDE // STRIDE
NOUNS, COLOUR_NAMES = tuple(c.noun for c in CONCEPTS), tuple(COLOURS)
MAX_DETECTIONS = 16
WEIGHTS = Path(__file__).with_name("detector.safetensors")


class Bottleneck(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        inner = width // 2
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            Bottleneck(64, 1), Bottleneck(64, 2),
            nn.Conv2d(64, 160, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(160), nn.ReLU(),
            *(Bottleneck(160, dilation) for dilation in (1, 2, 3, 1, 2)),
        )  # fmt: skip
        self.presence = nn.Conv2d(160, 1, 1)
        self.noun = nn.Conv2d(160, len(NOUNS), 1)
        self.colour = nn.Conv2d(160, len(COLOUR_NAMES), 1)
        self.box = nn.Conv2d(160, 4, 1)
        nn.init.constant_(self.presence.bias, -4.0)  # most cells hold no centre

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float [B, 3, 128, 128] in [-1, 1] -> logits [B, n, 16, 16]; box: dx, dy, log width, log height in cells"""
        x = self.backbone(images)
        return {name: getattr(self, name)(x).float() for name in ("presence", "noun", "colour", "box")}

    @torch.no_grad()
    def detect(self, images: np.ndarray, batch_size: int = 128) -> list[list[Detection]]:
        """uint8 [N, 128, 128, 3] -> the objects of each picture, surest first"""
        if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3) or images.dtype != np.uint8:
            raise InvalidRequestError(
                f"images: expected uint8 [N, {SIDE}, {SIDE}, 3], got {images.dtype} {list(images.shape)}"
            )
        device = self.presence.weight.device
        found = []
        for begin in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[begin : begin + batch_size])).to(device)
            found += _detections(self(batch.permute(0, 3, 1, 2).float() / 127.5 - 1))
        return found


def _detections(maps: dict[str, Tensor]) -> list[list[Detection]]:
    presence = maps["presence"].sigmoid()
    peaks = presence * (F.max_pool2d(presence, 3, stride=1, padding=1) == presence)  # one cell an object
    noun_probability, noun = maps["noun"].softmax(1).max(1)
    confidence = (peaks[:, 0] * noun_probability).flatten(1)
    best, cells = confidence.topk(MAX_DETECTIONS)
    boxes = maps["box"].flatten(2)
    noun, colour = noun.flatten(1), maps["colour"].argmax(1).flatten(1)
    result = []
    for i in range(len(best)):
        objects = []
        for sure, cell in zip(best[i].tolist(), cells[i].tolist()):
            if sure < 0.05:  # far below every threshold of rules.py
                break
            dx, dy, log_width, log_height = boxes[i, :, cell].tolist()
            x, y = (cell % CELLS + 0.5 + dx) * STRIDE, (cell // CELLS + 0.5 + dy) * STRIDE
            half_width, half_height = np.exp([log_width, log_height]) * STRIDE / 2
            objects.append(
                Detection(
                    NOUNS[noun[i, cell]], sure, COLOUR_NAMES[colour[i, cell]],
                    (x - half_width, y - half_height, x + half_width, y + half_height),
                )
            )  # fmt: skip
        result.append(objects)
    return result


def save_detector(detector: Detector, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        name: value.detach().cpu().half().contiguous()
        for name, value in detector.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(
        tensors, str(path), metadata={"format": "pt", "nouns": "|".join(NOUNS), "colours": "|".join(COLOUR_NAMES)}
    )


def load_detector(path: Path = WEIGHTS) -> Detector:
    from safetensors import SafetensorError, safe_open

    detector = Detector()
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected weights of simplear_train.emojieval.train_detector: {error}"
        ) from error
    for key, names in (("nouns", NOUNS), ("colours", COLOUR_NAMES)):
        if metadata.get(key) != "|".join(names):
            raise CheckpointError(f"{path}: was trained for other {key} than concepts.py lists; train it again")
    wanted = {name for name in detector.state_dict() if not name.endswith("num_batches_tracked")}
    if set(tensors) != wanted:
        raise CheckpointError(f"{path}: expected tensors {sorted(wanted)[:3]}..., got {sorted(tensors)[:3]}...")
    detector.load_state_dict(tensors, strict=False)  # the counters of BatchNorm are of no use here
    return detector.eval()
