"""Log-probabilities of chosen tokens under a large vocabulary, without the logits ever standing in memory at once.

    log_prob[i] = hidden[i] . table[target[i]] - log sum_v exp(hidden[i] . table[v])

A picture of 4,096 tokens over 64,000 codes has a gigabyte of logits in float32. Here they are computed for a chunk of
tokens at a time, and again in the backward pass, where only their log-sum was kept: one more product with the table
for memory that no longer grows with the number of tokens. Where everything fits into one chunk the logits are kept.

With top_k the sum goes over the k largest logits (and the target's own, should rounding have left it out).
"""

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 24  # 64 MB in float32


def token_log_probs(hidden: Tensor, table: Tensor, targets: Tensor, top_k: int = 0) -> Tensor:
    """float32 [N] from hidden [N, D], table [V, D] and int64 targets [N] in 0..V-1; top_k 0 stands for all rows."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, table = hidden.to(dtype), table.to(dtype)
    return _TokenLogProbs.apply(hidden, table, targets, top_k if top_k < len(table) else 0)


def _chunks(num_tokens: int, vocab_size: int):
    rows = max(1, CHUNK_LOGITS // vocab_size)
    return [slice(begin, begin + rows) for begin in range(0, num_tokens, rows)]


def _logits(hidden: Tensor, table: Tensor, targets: Tensor, top_k: int) -> Tensor:
    logits = (hidden @ table.T).float()
    if top_k:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        dropped = (logits < threshold).scatter_(1, targets[:, None], False)
        logits = logits.masked_fill_(dropped, -torch.inf)
    return logits


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, table, targets, top_k):
        log_probs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        log_sums = torch.empty_like(log_probs)
        chunks = _chunks(len(targets), len(table))
        logits = None
        for part in chunks:
            logits = _logits(hidden[part], table, targets[part], top_k)
            log_sums[part] = logits.logsumexp(-1)
            log_probs[part] = logits.gather(1, targets[part, None])[:, 0] - log_sums[part]
        kept = logits if len(chunks) == 1 and any(ctx.needs_input_grad[:2]) else None
        ctx.save_for_backward(hidden, table, targets, log_sums, kept)
        ctx.top_k = top_k
        return log_probs

    @staticmethod
    def backward(ctx, grad):
        hidden, table, targets, log_sums, kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
        for part in _chunks(len(targets), len(table)):
            logits = _logits(hidden[part], table, targets[part], ctx.top_k) if kept is None else kept
            # d log_prob / d logits = onehot - softmax
            grad_logits = (logits - log_sums[part, None]).exp_().mul_(-grad[part, None])
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None])
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[part] = grad_logits @ table
            if hidden.dtype == torch.float32:
                grad_table.addmm_(grad_logits.T, hidden[part])  # no second table-sized matrix
            else:
                grad_table += grad_logits.T @ hidden[part]
        return grad_hidden, grad_table.to(table.dtype), None, None
