"""The one random checkpoint that all peers compute, in the two forms that they need.

    python -m peers.checkpoint WORK [--context 32] [--steps 64]

`simplear` is a checkpoint of our own format (264 text tokens, then the 64,000 codes that are ever sampled); `qwen2` holds
the same numbers as Hugging Face's Qwen2 with the codes as its whole vocabulary, for everybody else. `reference-*.json` is
what float32 draws greedily, against which the peers' tokens are held. Runs where our engine is installed.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from peers.peer import END_TOKEN, SHAPE, VOCAB_SIZE, prompts

TEXT_TOKENS = 264
REFERENCE_TOKENS = 16


def write_checkpoints(work: Path) -> None:
    from simplear_engine.safetensors_file import StreamedTensor, read_safetensors, write_safetensors
    from simplear_engine.testing.random_checkpoint import write_random_checkpoint

    ours, theirs = work / "checkpoint" / "simplear", work / "checkpoint" / "qwen2"
    if (theirs / "config.json").exists():
        return
    write_random_checkpoint(ours, "0.5b", num_text_tokens=TEXT_TOKENS, num_codes=VOCAB_SIZE)
    theirs.mkdir(parents=True, exist_ok=True)
    tensors, _ = read_safetensors(ours / "model.safetensors")
    rows = {"model.embed_tokens.weight": slice(TEXT_TOKENS, None)}
    streams = {}
    for name, stored in tensors.items():
        data = stored.data[rows.get(name, slice(None))]
        streams[name] = StreamedTensor(stored.dtype, data.shape, lambda data=data: iter([data.reshape(-1)]))
    write_safetensors(theirs / "model.safetensors", streams, {"format": "pt"})
    _write(theirs / "tokenizer.json", _tokenizer())
    words = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), str(END_TOKEN))
    _write(theirs / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **words})
    _write(theirs / "generation_config.json", {"do_sample": False, "eos_token_id": END_TOKEN})
    _write(
        theirs / "config.json",
        {
            **SHAPE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "vocab_size": VOCAB_SIZE, "tie_word_embeddings": True, "use_sliding_window": False,
            "torch_dtype": "bfloat16", "bos_token_id": END_TOKEN, "eos_token_id": END_TOKEN,
        },
    )  # fmt: skip


def write_reference(work: Path, context: int) -> Path:
    """The first greedy tokens of each prompt in float32, each sequence for itself."""
    from simplear_engine import Engine

    path = work / "checkpoint" / f"reference-{context}.json"
    if path.exists():
        return path
    with Engine.from_pretrained(work / "checkpoint" / "simplear", dtype="float32", max_pairs=1) as engine:
        _write(path, greedy_rows(engine, context, REFERENCE_TOKENS))
    return path


def greedy_rows(engine, context: int, count: int) -> list[list[int]]:
    """What `engine` draws greedily from each of the two prompts without guidance."""
    rows = []
    for prompt in prompts(context):
        ids = [TEXT_TOKENS + token for token in prompt]
        image = engine.generate_from_ids(ids, height=16 * count, width=16, guidance_scale=1, temperature=0)[0]
        rows.append(np.asarray(image.tokens).reshape(-1).tolist())
    return rows


def _tokenizer() -> dict:
    """Words "0" to "63999": converters want a tokenizer, nobody uses it."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {str(i): i for i in range(VOCAB_SIZE)}, "unk_token": "0"},
    }  # fmt: skip


def _write(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--context", type=int, default=32)
    options = parser.parse_args()
    write_checkpoints(options.work)
    write_reference(options.work, options.context)


if __name__ == "__main__":
    main()
