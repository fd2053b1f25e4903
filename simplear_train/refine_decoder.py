"""Train the tokenizer's decoder further while its encoder, and so every token, stays as it is.

    python -m simplear_train.refine_decoder --preset default --tokenizer runs/tokenizer/tokenizer.safetensors \\
        --tokens runs/tokens --out runs/decoder

Once tokens are extracted the language model can train, and the decoder can go on learning beside it at half the cost of a
full step: its inputs are the extracted codes, its targets are the scenes rendered again from their numbers.
Writes OUT/{checkpoint.pt, log.jsonl, reconstructions.png, tokenizer.safetensors}.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import AveragedWeights, JsonlLog, adamw, cosine_learning_rate, load_checkpoint, save_checkpoint
from .emoji_scenes import SceneMaker
from .extract_tokens import read_tokens
from .image_tokenizer import load_image_tokenizer, save_image_tokenizer
from .parallel import average_gradients, join_peers
from .presets import PRESETS, Preset, concepts_of
from .sprites import DEFAULT_CACHE
from .train_tokenizer import VALIDATION_SEED_OFFSET, reconstruction_loss, to_tensor, validate


def refine_decoder(
    preset: Preset, tokenizer_path: Path, tokens: Path, out: Path, cache_dir: Path, device: str, resume: bool
) -> Path:
    settings, share = preset.tokenizer, join_peers(device)
    tokenizer = load_image_tokenizer(tokenizer_path).to(device).train()
    for part in (tokenizer.encoder, tokenizer.quant_conv):
        part.requires_grad_(False)
    side = settings.image_side // settings.spatial_compression
    codes = torch.from_numpy(read_tokens(tokens, "train")[0]).view(-1, side, side)
    scenes = SceneMaker(preset.seed, settings.image_side, cache_dir, concepts_of(preset))
    held_back = SceneMaker(preset.seed + VALIDATION_SEED_OFFSET, settings.image_side, cache_dir, concepts_of(preset))
    validation = to_tensor([held_back.picture(i) for i in range(64)]).to(device)
    average = AveragedWeights(tokenizer, settings.ema_decay)
    trained = torch.nn.ModuleList([tokenizer.post_quant_conv, tokenizer.decoder])
    optimizer = adamw(trained, settings.refine_learning_rate, settings.weight_decay, betas=(0.9, 0.99))

    first_step = 0
    if resume and (out / "checkpoint.pt").exists():
        state = load_checkpoint(out / "checkpoint.pt")
        tokenizer.load_state_dict(state["model"])
        average.restore(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    log = JsonlLog(out / "log.jsonl", append=first_step > 0, enabled=share.is_first)
    steps, batch_size = settings.refine_steps, settings.batch_size
    for step in tqdm(
        range(first_step, steps),
        initial=first_step,
        total=steps,
        desc="decoder",
        mininterval=5,
        disable=not share.is_first,
    ):
        epoch, number = divmod(step, len(codes) // batch_size)
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(preset.seed + epoch))
        chosen = order[torch.tensor(share.slice(number * batch_size, batch_size))]
        images = to_tensor([scenes.picture(int(i)) for i in chosen]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(step, steps, settings.warmup_steps, settings.refine_learning_rate, 1e-5)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            output = tokenizer.decode(codes[chosen].to(device))
        loss, pixel = reconstruction_loss(output.float(), images, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(trained, share)
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update(tokenizer)

        done = step + 1
        if done % 20 == 0 or done == steps:
            log.write(step=done, loss=round(loss.item(), 5), pixel=round(pixel.item(), 5))
        if share.is_first and (done % 250 == 0 or done == steps):
            log.write(step=done, **validate(tokenizer, average, validation, out / "reconstructions.png"))
            state = {
                "step": done,
                "model": tokenizer.state_dict(),
                "average": average.state(),
                "optimizer": optimizer.state_dict(),
            }
            save_checkpoint(out / "checkpoint.pt", state)
            averaged = load_image_tokenizer(tokenizer_path)
            averaged.load_state_dict(average.values)
            save_image_tokenizer(averaged, out / "tokenizer.safetensors", torch.float32)
    return out / "tokenizer.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer.safetensors whose encoder made the tokens"
    )
    parser.add_argument("--tokens", type=Path, required=True, help="folder of extract_tokens")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="instead of the preset's number")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.steps:
        preset = replace(preset, tokenizer=replace(preset.tokenizer, refine_steps=args.steps))
    print(refine_decoder(preset, args.tokenizer, args.tokens, args.out, args.cache_dir, args.device, args.resume))


if __name__ == "__main__":
    main()
