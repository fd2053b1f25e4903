"""An engine that draws with the very tensors that torch is training: an optimizer step is seen by the next image.

Run it (it needs torch):

    python examples/live_weights.py
"""

import torch

from simplear_engine import Engine
from simplear_engine.checkpoint import load_checkpoint, resolve
from simplear_engine.dtypes import to_float32

checkpoint = load_checkpoint(resolve("default"))
parameters = {
    name: torch.nn.Parameter(torch.from_numpy(to_float32(stored.data, stored.dtype).copy()))
    for name, stored in checkpoint.tensors.items()
}
optimizer = torch.optim.SGD(parameters.values(), lr=1e-2)
prompt = checkpoint.text.encode_prompt("a red apple", checkpoint.defaults)

with Engine.from_weights(checkpoint.model, {name: p.detach() for name, p in parameters.items()}) as engine:
    before = engine.score_from_ids(prompt, [0])
    # Any loss would do; this one just moves every weight a little.
    sum(p.square().mean() for p in parameters.values()).backward()
    optimizer.step()
    engine.weights_changed()
    after = engine.score_from_ids(prompt, [0])
print(f"largest change of a logit after one optimizer step: {abs(after - before).max():.4f}")
