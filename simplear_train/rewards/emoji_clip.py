"""A CLIP for emoji scenes: how well do a caption and a picture fit, as the cosine of two vectors?

Two small towers, trained against each other by train_emoji_clip.py. It knows neither the detector of emojieval nor its
scenes: the reward that a model is trained on and the judge that measures the gain must not share their blind spots.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from simplear_engine.errors import CheckpointError

SIDE = 64  # pictures are shrunk to it; sprites stay 32 pixels wide
MAX_WORDS = 40  # tokens of a caption; what is longer is cut


@dataclass(frozen=True)
class ClipConfig:
    vocab_size: int
    embedding_size: int = 128
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    image_width: int = 192
    num_glances: int = 4  # learned queries that gather the picture's cells


class ConvBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.reduce = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(F.gelu(self.expand(self.depthwise(self.norm(x)))))


class ImageTower(nn.Module):
    """[B, 3, 64, 64] in [-1, 1] -> [B, embedding_size]: 8 x 8 cells, gathered by learned queries that know each
    cell's place."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        width = config.image_width
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, width // 2, 3, padding=1), ConvBlock(width // 2))
        self.down = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(3)))
        self.place = nn.Parameter(torch.randn(64, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.num_glances, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.project = nn.Linear(config.num_glances * width, config.embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.blocks(self.down(self.stem(images))).flatten(2).transpose(1, 2)
        cells = self.norm(cells + self.place)
        gathered, _ = self.attend(self.queries.expand(len(images), -1, -1), cells, cells, need_weights=False)
        return self.project(gathered.flatten(1))


class TextTower(nn.Module):
    """[B, T] token ids, padding mask -> [B, embedding_size]; the mean state of all words."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        width = config.text_width
        self.words = nn.Embedding(config.vocab_size, width)
        self.place = nn.Parameter(torch.randn(MAX_WORDS, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.text_heads, 3 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.text_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.embedding_size)

    def forward(self, ids: Tensor, is_padding: Tensor) -> Tensor:
        x = self.words(ids) + self.place[: ids.shape[1]]
        x = self.norm(self.layers(x, src_key_padding_mask=is_padding))
        x = x.masked_fill(is_padding[..., None], 0).sum(1) / (~is_padding).sum(1, keepdim=True)
        return self.project(x)


class EmojiClip(nn.Module):
    def __init__(self, config: ClipConfig, tokenizer: Tokenizer):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.image_tower, self.text_tower = ImageTower(config), TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def text_vectors(self, captions: list[str]) -> Tensor:
        # Case and a full stop say nothing about a picture.
        encoded = [
            self.tokenizer.encode(c.lower().rstrip(" ."), add_special_tokens=False).ids[:MAX_WORDS] or [0]
            for c in captions
        ]
        ids = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.int64)
        is_padding = torch.ones_like(ids, dtype=torch.bool)
        for row, padding, words in zip(ids, is_padding, encoded):
            row[: len(words)] = torch.tensor(words)
            padding[: len(words)] = False
        device = self.log_scale.device
        return F.normalize(self.text_tower(ids.to(device), is_padding.to(device)).float(), dim=-1)

    def image_vectors(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1]"""
        small = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return F.normalize(self.image_tower(small).float(), dim=-1)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().half().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, str(folder / "emoji_clip.safetensors"), metadata={"config": json.dumps(vars(self.config))})
        self.tokenizer.save(str(folder / "tokenizer.json"))

    @classmethod
    def load(cls, folder: Path) -> "EmojiClip":
        from safetensors import safe_open

        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            with safe_open(str(folder / "emoji_clip.safetensors"), "pt") as file:
                model = cls(ClipConfig(**json.loads(file.metadata()["config"])), tokenizer)
                model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
        except Exception as error:  # tokenizers raises bare Exception for a missing file
            raise CheckpointError(
                f"{folder}: expected a folder of simplear_train.rewards.train_emoji_clip: {error}"
            ) from error
        return model.eval()


class EmojiClipReward:
    """Cosine of the two vectors, -1..1."""

    def __init__(self, folder: str, device: str = "cpu", batch_size: int = 256):
        self.model = EmojiClip.load(Path(folder)).to(device)
        self.device, self.batch_size = device, batch_size

    @torch.no_grad()
    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        scores = np.empty(len(prompts), np.float32)
        for begin in range(0, len(prompts), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            pixels = torch.from_numpy(np.ascontiguousarray(images[part])).to(self.device).permute(0, 3, 1, 2)
            cosine = self.model.image_vectors(pixels.float() / 127.5 - 1) * self.model.text_vectors(prompts[part])
            scores[part] = cosine.sum(-1).cpu().numpy()
        return scores
