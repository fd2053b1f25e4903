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
from tqdm import tqdm

from .checkpoint import AveragedWeights, JsonlLog, adamw, cosine_learning_rate, load_checkpoint, save_checkpoint
from .emoji_scenes import BACKGROUNDS, SceneMaker
from .image_tokenizer import ImageTokenizer, TokenizerConfig, save_image_tokenizer
from .parallel import average_gradients, join_peers
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


@torch.no_grad()
def validate(tokenizer: ImageTokenizer, average: AveragedWeights, images: Tensor, picture_path: Path | None) -> dict:
    """PSNR of the averaged weights, the share of codes in use, and a picture: originals above reconstructions."""
    live = {name: p.detach().clone() for name, p in tokenizer.named_parameters()}
    tokenizer.load_state_dict(average.values)
    indices = torch.cat([tokenizer.encode(part) for part in images.split(32)])
    output = torch.cat([tokenizer.decode(part) for part in indices.split(32)]).clamp(-1, 1)
    tokenizer.load_state_dict(live)
    psnr = -10 * torch.log10(((output - images) / 2).square().mean())
    if picture_path is not None:
        from PIL import Image

        stack = torch.cat([images[:32].unflatten(0, (4, 8)), output[:32].unflatten(0, (4, 8))], dim=3)
        grid = ((stack + 1) * 127.5).round().byte().cpu().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
        Image.fromarray(grid.numpy()).save(picture_path)
    return {"psnr": round(psnr.item(), 3), "codes_used": indices.unique().numel()}


def train_tokenizer(
    preset: Preset, out: Path, cache_dir: Path, device: str, resume: bool, stop_at: int | None = None
) -> Path:
    settings, share = preset.tokenizer, join_peers(device)
    torch.manual_seed(preset.seed)
    tokenizer = ImageTokenizer(tokenizer_config(settings)).to(device)
    average = AveragedWeights(tokenizer, settings.ema_decay)
    optimizer = adamw(tokenizer, settings.learning_rate, settings.weight_decay, betas=(0.9, 0.99))
    scenes = SceneMaker(preset.seed, settings.image_side, cache_dir, concepts_of(preset))
    held_back = SceneMaker(preset.seed + VALIDATION_SEED_OFFSET, settings.image_side, cache_dir, concepts_of(preset))
    validation = to_tensor([held_back.picture(i) for i in range(64)]).to(device)

    first_step = 0
    if resume and (out / "checkpoint.pt").exists():
        state = load_checkpoint(out / "checkpoint.pt")
        tokenizer.load_state_dict(state["model"])
        average.restore(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    log = JsonlLog(out / "log.jsonl", append=first_step > 0, enabled=share.is_first)
    log.write(parameters=sum(p.numel() for p in tokenizer.parameters()), batch_size=settings.batch_size)

    last_step = min(settings.steps, stop_at or settings.steps)
    progress = tqdm(
        range(first_step, last_step),
        initial=first_step,
        total=settings.steps,
        desc="tokenizer",
        mininterval=5,
        disable=not share.is_first,
    )
    for step in progress:
        numbers = share.slice(step * settings.batch_size, settings.batch_size)
        images = to_tensor([scenes.picture(i) for i in numbers]).to(device)
        rate = cosine_learning_rate(
            step, settings.steps, settings.warmup_steps, settings.learning_rate, 0.02 * settings.learning_rate
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            output = tokenizer(images)
        loss, pixel = reconstruction_loss(output.float(), images, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(tokenizer, share)
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        average.update(tokenizer)

        done = step + 1
        if done % 20 == 0 or done == last_step:
            log.write(step=done, loss=round(loss.item(), 5), pixel=round(pixel.item(), 5), rate=rate)
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if share.is_first and (done % 250 == 0 or done == last_step):
            log.write(step=done, **validate(tokenizer, average, validation, out / "reconstructions.png"))
            save_checkpoint(
                out / "checkpoint.pt",
                {
                    "step": done,
                    "model": tokenizer.state_dict(),
                    "average": average.state(),
                    "optimizer": optimizer.state_dict(),
                },
            )
    if share.is_first:
        tokenizer.load_state_dict(average.values)
        save_image_tokenizer(tokenizer, out / "tokenizer.safetensors", torch.float32)
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
