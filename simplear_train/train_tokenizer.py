"""Train the picture tokenizer on rendered scenes.

In runs/, where configs of later stages look for it:

    python -m simplear_train.train_tokenizer --config default-tokenizer --out tokenizer-run
    python -m simplear_train.train_tokenizer --config default-tokenizer --out tokenizer-run --resume

Loss: L1 on pixels plus L1 on horizontal and vertical differences (edges are what makes a small picture readable),
both weighted towards pixels that are not background. Writes OUT/{config.toml, log.jsonl, checkpoint.pt,
reconstructions.png, tokenizer.safetensors}; the last two hold the averaged weights' result.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .config_file import COUNT, check_values
from .emoji_scenes import BACKGROUNDS, SceneMaker
from .image_tokenizer import ImageTokenizer, TokenizerConfig, save_image_tokenizer
from .loop import LoopConfig
from .parallel import Share, join_peers
from .run import main_of, run_loop
from .sprites import DEFAULT_CACHE
from .worlds import WORLDS

VALIDATION_SEED_OFFSET = 1


@dataclass(frozen=True)
class ReconstructionConfig:
    """Weights in the loss: of differences beside pixels, and of a pixel that is not background beside one that is."""

    gradient_weight: float = 0.5
    object_weight: float = 4.0


@dataclass(frozen=True)
class TokenizerTrainingConfig:
    """network: NVIDIA Cosmos' DI design in other numbers; image_tokenizer.py has their meaning."""

    world: Literal["default", "smoke"] = "default"
    batch_size: int = 16
    network: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_values(self, "", batch_size=COUNT)


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each -> float32 [B, 3, H, W] in [-1, 1]"""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def object_weights(images: Tensor, object_weight: float) -> Tensor:
    """[B, 1, H, W]: 1 where a pixel has exactly a background colour, object_weight elsewhere; mean 1 per batch."""
    colours = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32, device=images.device) / 127.5 - 1
    distance = torch.stack([(images - c.view(1, 3, 1, 1)).abs().amax(1, keepdim=True) for c in colours]).amin(0)
    weights = 1 + (object_weight - 1) * (distance > 0.01).float()
    return weights / weights.mean()


def reconstruction_loss(output: Tensor, images: Tensor, config: ReconstructionConfig) -> tuple[Tensor, Tensor]:
    """(total, pixel part)"""
    weights = object_weights(images, config.object_weight)
    error = output - images
    pixel = (weights * error.abs()).mean()
    gradient = (weights[..., 1:] * error.diff(dim=-1).abs()).mean() + (
        weights[..., 1:, :] * error.diff(dim=-2).abs()
    ).mean()
    return pixel + config.gradient_weight * gradient, pixel


def validate(tokenizer: ImageTokenizer, images: Tensor, picture_path: Path | None) -> dict:
    """PSNR, the share of codes in use, and a picture: originals above reconstructions."""
    indices = torch.cat([tokenizer.encode(part) for part in images.split(32)])
    output = torch.cat([tokenizer.decode(part) for part in indices.split(32)]).float().clamp(-1, 1)
    psnr = -10 * torch.log10(((output - images) / 2).square().mean())
    if picture_path is not None:
        from PIL import Image

        stack = torch.cat([images[:32].unflatten(0, (4, 8)), output[:32].unflatten(0, (4, 8))], dim=3)
        grid = ((stack + 1) * 127.5).round().byte().cpu().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
        Image.fromarray(grid.numpy()).save(picture_path)
    return {"psnr": round(psnr.item(), 3), "codes_used": indices.unique().numel()}


class Reconstruction:
    """The stage of loop.py: pictures in, the same pictures out. `output` computes the latter for one micro-batch."""

    def __init__(
        self, name: str, tokenizer: ImageTokenizer, config, out: Path, cache_dir: Path, device: str, share: Share
    ):  # fmt: skip
        self.name, self.model, self.config, self.out, self.device, self.share = (
            name, tokenizer, config, out, device, share,
        )  # fmt: skip
        world = WORLDS[config.world]
        self.scenes = SceneMaker(world.seed, world.image_side, cache_dir, world.concepts)
        held_back = SceneMaker(world.seed + VALIDATION_SEED_OFFSET, world.image_side, cache_dir, world.concepts)
        self.held_back = to_tensor([held_back.picture(i) for i in range(64)]).to(device)

    def updates(self, step: int):
        yield [list(self.share.slice(step * self.config.batch_size, self.config.batch_size))]

    def images(self, numbers: list[int]) -> Tensor:
        return to_tensor([self.scenes.picture(i) for i in numbers]).to(self.device)

    def output(self, numbers: list[int], images: Tensor) -> Tensor:
        return self.model(images)

    def loss(self, numbers: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        images = self.images(numbers)
        output = self.output(numbers, images)
        with torch.autocast(images.device.type, enabled=False):
            loss, pixel = reconstruction_loss(output.float(), images, self.config.loss)
        part = len(numbers) / self.config.batch_size
        return loss * part, {"pixel": pixel * part}

    def report(self) -> dict[str, float]:
        return {}

    def validate(self, step: int) -> dict[str, float]:
        with torch.autocast(self.held_back.device.type, enabled=False):
            return validate(
                self.model, self.held_back, self.out / "reconstructions.png" if self.share.is_first else None
            )

    def export(self, weights: dict[str, Tensor]) -> None:
        tokenizer = ImageTokenizer(self.model.config)
        tokenizer.load_state_dict(weights)
        save_image_tokenizer(tokenizer, self.out / "tokenizer.safetensors", torch.float32)


def train_tokenizer(
    config: TokenizerTrainingConfig, out: Path, device: str, resume: bool = False, stop_at: int | None = None,
    cache_dir: Path = DEFAULT_CACHE,
) -> Path:  # fmt: skip
    share = join_peers(device)
    torch.manual_seed(config.loop.seed)
    tokenizer = ImageTokenizer(config.network).to(device)
    stage = Reconstruction("tokenizer", tokenizer, config, out, cache_dir, device, share)
    run_loop(stage, config, out, device, share, resume, stop_at)
    return out / "tokenizer.safetensors"


if __name__ == "__main__":
    main_of(TokenizerTrainingConfig, train_tokenizer, __doc__)
