#!/usr/bin/env python3
"""Memory and time of a loss over SimpleAR's 64,000 visual rows: chunked log-probabilities beside plain cross entropy.

    python benchmarks/training/log_prob_memory.py [--tokens 1024] [--hidden 896]

Forward and backward of one picture's tokens in float32, each in a process of its own. Checked before anything is printed:
both give the same loss and the same gradient of the final states. Prints what the loss added to the process's peak memory, in
MB, and the time of the second of two passes. The last line is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

NUM_CODES = 64_000


def measure(kind: str, num_tokens: int, hidden_size: int) -> dict:
    import torch
    import torch.nn.functional as F

    from simplear_train.log_probs import token_log_probs

    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, requires_grad=True)
    table = (0.02 * torch.randn(NUM_CODES, hidden_size)).requires_grad_()
    targets = torch.randint(0, NUM_CODES, (num_tokens,))
    table.grad = torch.zeros_like(table)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        hidden.grad = None
        began = time.perf_counter()
        if kind == "chunked":
            loss = -token_log_probs(hidden, table, targets).mean()
        else:
            loss = F.cross_entropy(hidden @ table.T, targets)
        loss.backward()
        seconds = time.perf_counter() - began
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    return {
        "kind": kind, "added_mb": round(added), "seconds": round(seconds, 2), "loss": loss.item(),
        "gradient": hidden.grad.norm().item(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--only", choices=("chunked", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.tokens, args.hidden)))
        return
    results = []
    for kind in ("plain", "chunked"):
        command = [sys.executable, __file__, "--only", kind, "--tokens", str(args.tokens), "--hidden", str(args.hidden)]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    plain, chunked = results
    for key in ("loss", "gradient"):
        assert abs(plain[key] - chunked[key]) <= 1e-4 * abs(plain[key]), f"{key}: {plain[key]} and {chunked[key]}"
    for result in results:
        print(f"{result['kind']:8} {result['added_mb']:6} MB  {result['seconds']:6} s")
    print(json.dumps({"tokens": args.tokens, "hidden": args.hidden, "results": results}))


if __name__ == "__main__":
    main()
