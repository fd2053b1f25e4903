"""Next-token pretraining: caption in, visual tokens out.

    python -m simplear_train.pretrain --preset default --tokens runs/tokens --out runs/model
    torchrun --standalone --nproc-per-node 2 -m simplear_train.pretrain ... --resume

A sample is  <|t2i|> caption <|soi|> code_0 ... code_63  with code c at row c + len(text tokenizer); a tenth of them lose
their caption, which trains the unconditional branch that guidance needs. The loss is cross entropy of each visual token over
the visual rows (the only ones a sampler may draw), plus a small share of the captions' own loss over the text rows.
Writes OUT/{checkpoint.pt, log.jsonl, tokenizer.json, config.json, model.safetensors}; the last holds averaged weights.
"""

import argparse
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from .checkpoint import AveragedWeights, JsonlLog, adamw, cosine_learning_rate, load_checkpoint, save_checkpoint
from .extract_tokens import read_tokens
from .model import Qwen2Config, Qwen2Model, save_hf_folder
from .parallel import ALONE, Share, average_gradients, join_peers
from .presets import PRESETS, Preset
from .text_tokenizer import prompt_ids, train_text_tokenizer

SORTED_BATCHES = 16  # batches that are sorted by length together, so that little is padded


class TokenData:
    """Samples as id sequences. Which samples, wordings and drops a step sees depends on (seed, step) alone."""

    def __init__(
        self, codes: np.ndarray, captions: list[list[str]], tokenizer: Tokenizer, drop_condition: float, seed: int
    ):
        self.codes = codes + tokenizer.get_vocab_size()
        self.prompts = [[prompt_ids(tokenizer, wording) for wording in wordings] for wordings in captions]
        self.bare = prompt_ids(tokenizer, "")
        self.pad_id = 0  # stands after the picture: never attended to, never a target
        self.drop_condition = drop_condition
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """(sample numbers [batches, batch_size], wording numbers, -1 = dropped)"""
        rng = np.random.default_rng((self.seed, epoch))
        num_batches = len(self.codes) // batch_size
        order = rng.permutation(len(self.codes))[: num_batches * batch_size]
        wordings = rng.integers(len(self.prompts[0]), size=len(order))
        wordings[rng.random(len(order)) < self.drop_condition] = -1
        chunk = SORTED_BATCHES * batch_size
        for begin in range(0, len(order), chunk):
            part = slice(begin, begin + chunk)
            lengths = [len(self.prompt(i, w)) for i, w in zip(order[part], wordings[part])]
            by_length = np.argsort(lengths, kind="stable")
            order[part], wordings[part] = order[part][by_length], wordings[part][by_length]
        shuffled = rng.permutation(num_batches)
        return order.reshape(-1, batch_size)[shuffled], wordings.reshape(-1, batch_size)[shuffled]

    def prompt(self, sample: int, wording: int) -> list[int]:
        return self.bare if wording < 0 else self.prompts[sample][wording]

    def batch(self, step: int, batch_size: int, share: Share = ALONE) -> tuple[Tensor, Tensor]:
        """(ids int64 [B, T], prompt lengths int64 [B]) of this process's share"""
        epoch, number = divmod(step, len(self.codes) // batch_size)
        order, wordings = self._epoch(epoch, batch_size)
        # A stride, not a block: batches are sorted, and every process should get short and long prompts.
        mine = slice(share.rank, None, share.world_size)
        return self.pad(
            [(self.prompt(i, w), self.codes[i]) for i, w in zip(order[number][mine], wordings[number][mine])]
        )

    def pad(self, samples: list[tuple[list[int], np.ndarray]]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(prompt) for prompt, _ in samples])
        num_visual = len(samples[0][1])
        ids = torch.full((len(samples), int(lengths.max()) + num_visual), self.pad_id, dtype=torch.int64)
        for row, (prompt, codes) in zip(ids, samples):
            row[: len(prompt)] = torch.tensor(prompt)
            row[len(prompt) : len(prompt) + num_visual] = torch.from_numpy(codes)
        return ids, lengths


def losses(
    model: Qwen2Model, ids: Tensor, lengths: Tensor, num_visual: int, visual_offset: int
) -> tuple[Tensor, Tensor]:
    """(visual, text) cross entropy in nats per token"""
    hidden = model.hidden(ids[:, :-1])
    # The state at position p predicts token p + 1; the picture starts at `lengths`.
    picture = lengths[:, None] - 1 + torch.arange(num_visual, device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    visual_logits = model.logits(hidden[rows, picture], slice(visual_offset, None))
    visual = F.cross_entropy(visual_logits.flatten(0, 1).float(), (ids[rows, picture + 1] - visual_offset).flatten())
    in_caption = torch.arange(hidden.shape[1], device=ids.device) < lengths[:, None] - 1
    text_logits = model.logits(hidden[in_caption], slice(0, visual_offset))
    text = F.cross_entropy(text_logits.float(), ids[:, 1:][in_caption])
    return visual, text


@torch.no_grad()
def validate(model: Qwen2Model, average: AveragedWeights, data: TokenData, visual_offset: int, device: str) -> dict:
    """Averaged weights on unseen scenes, with their first wording and without."""
    live = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(average.values)
    num_visual, result = data.codes.shape[1], {}
    for name, wording in (("validation", 0), ("validation_unconditional", -1)):
        total, count = 0.0, 0
        for begin in range(0, len(data.codes), 64):
            chosen = range(begin, min(begin + 64, len(data.codes)))
            ids, lengths = data.pad([(data.prompt(i, wording), data.codes[i]) for i in chosen])
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                visual, _ = losses(model, ids.to(device), lengths.to(device), num_visual, visual_offset)
            total, count = total + visual.item() * len(chosen), count + len(chosen)
        result[name] = round(total / count, 4)
    model.load_state_dict(live)
    return result


def pretrain(preset: Preset, tokens: Path, out: Path, device: str, resume: bool, stop_at: int | None = None) -> Path:
    settings, share = preset.pretrain, join_peers(device)
    torch.manual_seed(preset.seed)
    out.mkdir(parents=True, exist_ok=True)
    codes, captions = read_tokens(tokens, "train")
    text_tokenizer = train_text_tokenizer((wordings[0] for wordings in captions), settings.text_vocab_size)
    offset = text_tokenizer.get_vocab_size()
    train = TokenData(codes, captions, text_tokenizer, settings.drop_condition, preset.seed)
    held_back = TokenData(*read_tokens(tokens, "validation"), text_tokenizer, 0.0, preset.seed)
    num_codes = int(np.prod(preset.tokenizer.levels))
    model = Qwen2Model(Qwen2Config(vocab_size=offset + num_codes, **asdict(preset.model))).to(device)
    average = AveragedWeights(model, settings.ema_decay)
    optimizer = adamw(model, settings.learning_rate, settings.weight_decay)

    first_step = 0
    if resume and (out / "checkpoint.pt").exists():
        state = load_checkpoint(out / "checkpoint.pt")
        model.load_state_dict(state["model"])
        average.restore(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    log = JsonlLog(out / "log.jsonl", append=first_step > 0, enabled=share.is_first)
    log.write(parameters=sum(p.numel() for p in model.parameters()), batch_size=settings.batch_size, scenes=len(codes))

    def keep(done: int) -> None:
        state = {
            "step": done,
            "model": model.state_dict(),
            "average": average.state(),
            "optimizer": optimizer.state_dict(),
        }
        save_checkpoint(out / "checkpoint.pt", state)
        averaged = Qwen2Model(model.config)
        averaged.load_state_dict(average.values)
        save_hf_folder(averaged, out, torch.bfloat16)
        text_tokenizer.save(str(out / "tokenizer.json"))

    last_step = min(settings.steps, stop_at or settings.steps)
    progress = tqdm(
        range(first_step, last_step),
        initial=first_step,
        total=settings.steps,
        desc="pretrain",
        mininterval=5,
        disable=not share.is_first,
    )
    for step in progress:
        ids, lengths = (t.to(device) for t in train.batch(step, settings.batch_size, share))
        rate = cosine_learning_rate(
            step, settings.steps, settings.warmup_steps, settings.learning_rate, settings.min_learning_rate
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            visual, text = losses(model, ids, lengths, codes.shape[1], offset)
        optimizer.zero_grad(set_to_none=True)
        (visual + settings.text_loss_weight * text).backward()
        average_gradients(model, share)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)

        done = step + 1
        if done % 20 == 0 or done == last_step:
            log.write(step=done, loss=round(visual.item(), 4), text_loss=round(text.item(), 4), rate=rate)
            progress.set_postfix(loss=f"{visual.item():.3f}")
        if share.is_first and (done % 500 == 0 or done == last_step):
            log.write(step=done, **validate(model, average, held_back, offset, device))
            keep(done)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of extract_tokens")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and the model's files")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="instead of the preset's number")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.steps:
        preset = replace(preset, pretrain=replace(preset.pretrain, steps=args.steps))
    print(pretrain(preset, args.tokens, args.out, args.device, args.resume))


if __name__ == "__main__":
    main()
