"""Train the picture tokenizer on rendered scenes.

    python -m simplear_train.train_tokenizer --preset default --out runs/tokenizer
    python -m simplear_train.train_tokenizer --preset default --out runs/tokenizer --resume

Loss: L1 on pixels plus L1 on horizontal and vertical differences (edges are what makes a small picture readable),
both weighted towards pixels that are not background. Writes runs/tokenizer/{checkpoint.pt, log.jsonl,
reconstructions.png, tokenizer.safetensors}; the last two hold the averaged weights' result.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .emoji_scenes import BACKGROUNDS, SceneMaker
from .image_tokenizer import ImageTokenizer, TokenizerConfig, save_image_tokenizer
from .loop import Loop, LoopConfig
from .parallel import Share, join_peers
from .presets import PRESETS, Preset, TokenizerPreset, concepts_of
from .sprites import DEFAULT_CACHE

VALIDATION_SEED_OFFSET = 1


def tokenizer_config(preset: TokenizerPreset) -> TokenizerConfig:
    return TokenizerConfig(
        preset.channels, preset.channels_mult, preset.num_res_blocks, preset.num_groups, preset.z_channels,
        preset.levels, preset.patch_size, preset.spatial_compression,
    )  # fmt: skip


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each -> float32 [B, 3, H, W] in [-1, 1]"""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def object_weights(images: Tensor, object_weight: float) -> Tensor:
    """[B, 1, H, W]: 1 where a pixel has exactly a background colour, object_weight elsewhere; mean 1 per batch."""
    colours = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32, device=images.device) / 127.5 - 1
    distance = torch.stack([(images - c.view(1, 3, 1, 1)).abs().amax(1, keepdim=True) for c in colours]).amin(0)
    weights = 1 + (object_weight - 1) * (distance > 0.01).float()
    return weights / weights.mean()


def reconstruction_loss(output: Tensor, images: Tensor, preset: TokenizerPreset) -> tuple[Tensor, Tensor]:
    """(total, pixel part)"""
    weights = object_weights(images, preset.object_weight)
    error = output - images
    pixel = (weights * error.abs()).mean()
    gradient = (weights[..., 1:] * error.diff(dim=-1).abs()).mean() + (
        weights[..., 1:, :] * error.diff(dim=-2).abs()
    ).mean()
    return pixel + preset.gradient_loss_weight * gradient, pixel


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


def loop_config(preset: Preset, steps: int, learning_rate: float, min_learning_rate: float) -> LoopConfig:
    settings = preset.tokenizer
    return LoopConfig(
        steps=steps, learning_rate=learning_rate, schedule="cosine", min_learning_rate=min_learning_rate,
        warmup_steps=settings.warmup_steps, weight_decay=settings.weight_decay, beta2=0.99, ema_decay=settings.ema_decay,
        log_every=min(20, max(1, steps // 10)), validate_every=250, save_every=250, seed=preset.seed,
    )  # fmt: skip


class Reconstruction:
    """The stage of loop.py: pictures in, the same pictures out. `output` computes the latter for one micro-batch."""

    def __init__(
        self,
        name: str,
        tokenizer: ImageTokenizer,
        preset: Preset,
        out: Path,
        cache_dir: Path,
        device: str,
        share: Share,
    ):
        self.name, self.model, self.settings, self.out, self.device, self.share = (
            name, tokenizer, preset.tokenizer, out, device, share,
        )  # fmt: skip
        side, concepts = preset.tokenizer.image_side, concepts_of(preset)
        self.scenes = SceneMaker(preset.seed, side, cache_dir, concepts)
        held_back = SceneMaker(preset.seed + VALIDATION_SEED_OFFSET, side, cache_dir, concepts)
        self.held_back = to_tensor([held_back.picture(i) for i in range(64)]).to(device)

    def updates(self, step: int):
        yield [list(self.share.slice(step * self.settings.batch_size, self.settings.batch_size))]

    def images(self, numbers: list[int]) -> Tensor:
        return to_tensor([self.scenes.picture(i) for i in numbers]).to(self.device)

    def output(self, numbers: list[int], images: Tensor) -> Tensor:
        return self.model(images)

    def loss(self, numbers: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        images = self.images(numbers)
        output = self.output(numbers, images)
        with torch.autocast(images.device.type, enabled=False):
            loss, pixel = reconstruction_loss(output.float(), images, self.settings)
        part = len(numbers) / self.settings.batch_size
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
    preset: Preset, out: Path, cache_dir: Path, device: str, resume: bool, stop_at: int | None = None
) -> Path:
    settings, share = preset.tokenizer, join_peers(device)
    torch.manual_seed(preset.seed)
    tokenizer = ImageTokenizer(tokenizer_config(settings)).to(device)
    stage = Reconstruction("tokenizer", tokenizer, preset, out, cache_dir, device, share)
    config = loop_config(preset, settings.steps, settings.learning_rate, 0.02 * settings.learning_rate)
    Loop(stage, config, out, device, share).run(resume, stop_at)
    return out / "tokenizer.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log, picture and weights")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE, help="where fetched art and sprites are kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="instead of the preset's number")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.steps:
        preset = replace(preset, tokenizer=replace(preset.tokenizer, steps=args.steps))
    print(train_tokenizer(preset, args.out, args.cache_dir, args.device, args.resume))


if __name__ == "__main__":
    main()
