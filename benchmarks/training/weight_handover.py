#!/usr/bin/env python3
"""What it costs to draw with weights that an optimizer has just changed, and whether that leaks.

    python benchmarks/training/weight_handover.py [--steps 200] [--dtype bfloat16]

The embedded model is trained on noise: an optimizer step, the hand-over (`weights_changed`), one picture, again and again.
Checked before anything is printed: every step changes the first code's log-probability as the trainer's own forward pass
says. Prints the median and the worst hand-over in ms, and the resident memory after a tenth of the steps and at
the end, in MB. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from simplear_train.live_engine import LiveEngine
from simplear_train.model_folder import from_folder


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = from_folder("default")
    model, offset = folder.model, folder.model.config.visual_offset
    live = LiveEngine(folder, args.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    prompt = folder.text.encode_prompt("a red apple", folder.defaults)
    bound = 1e-3 if args.dtype == "float32" else 0.5
    seconds, memory = [], []
    for step in range(args.steps):
        ids = torch.randint(0, model.config.vocab_size, (4, 40))
        optimizer.zero_grad(set_to_none=True)
        model(ids).logsumexp(-1).mean().backward()
        optimizer.step()
        began = time.perf_counter()
        live.refresh()
        seconds.append(time.perf_counter() - began)
        image = live.engine.generate_from_ids(prompt, guidance_scale=1, seed=step, top_k=model.config.num_codes)[0]
        with torch.no_grad():
            expected = model(torch.tensor([prompt]))[0, -1, offset:].log_softmax(-1)[image.tokens[0, 0]].item()
        drawn = float(image.log_probs[0, 0])
        assert abs(drawn - expected) < bound, f"step {step}: engine {drawn}, trainer {expected}"
        memory.append(resident_mb())
    result = {
        "dtype": args.dtype, "steps": args.steps, "median_ms": round(1e3 * statistics.median(seconds), 3),
        "worst_ms": round(1e3 * max(seconds), 3), "resident_mb_early": round(memory[args.steps // 10], 1),
        "resident_mb_end": round(memory[-1], 1),
    }  # fmt: skip
    print(
        f"hand-over {result['median_ms']} ms median, {result['worst_ms']} ms worst; resident "
        f"{result['resident_mb_early']} MB after {args.steps // 10} steps, {result['resident_mb_end']} MB after {args.steps}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
