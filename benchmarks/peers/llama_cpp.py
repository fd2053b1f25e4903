"""llama.cpp, compiled for this processor by llama-cpp-python and driven through its C interface.

    python -m peers.llama_cpp serve --work DIR --weights int4

The GGUF file is written straight from the checkpoint's numbers; llama.cpp's own quantiser makes q8_0 and q4_0 of every
matrix (`pure`: the embedding, which is the head, too). Both sequences go through one llama_decode, flash attention is
on, and weights are read into memory rather than mapped, so that they may lie on huge pages.
"""

import ctypes
import json
import sys
from pathlib import Path

from peers import peer
from peers.peer import SHAPE, VOCAB_SIZE, Variant

TITLE = "llama.cpp"
PACKAGE = "llama-cpp-python"
REQUIREMENTS = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.3.5")
_CPU = Path("/proc/cpuinfo")
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
# With AMX its int8 and int4 end with SIGILL in their first step (version 0.3.36), so it is compiled without.
BUILD_ENVIRONMENT = {"CFLAGS": _NO_AMX, "CXXFLAGS": _NO_AMX} if _CPU.exists() and "amx_int8" in _CPU.read_text() else {}
VARIANTS = {
    "bf16": Variant("bf16"),
    "int8": Variant("q8_0: int8, float16 scale for 32"),
    "int4": Variant("q4_0: int4, float16 scale for 32"),
}
_QUANTISED = {"int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}
_FILE = "model.gguf"
_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    if weights == "bf16":
        return _write_gguf(checkpoint, folder / _FILE)
    import llama_cpp

    source = folder / "bf16.gguf"
    _write_gguf(checkpoint, source)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.pure = getattr(llama_cpp, _QUANTISED[weights]), True
    failed = llama_cpp.llama_model_quantize(bytes(source), bytes(folder / _FILE), ctypes.byref(parameters))
    source.unlink()
    if failed:
        sys.exit(f"error: llama_model_quantize returned {failed}")


def _write_gguf(checkpoint: Path, path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SHAPE["rms_norm_eps"])
    writer.add_rope_freq_base(SHAPE["rope_theta"])
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("no_vocab")
    for name, bits in _read_bf16(checkpoint / "model.safetensors").items():
        if bits.ndim == 1:
            writer.add_tensor(_gguf_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(_gguf_name(name), bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, inner = name.split(".", 3)
    module, _, kind = inner.rpartition(".")
    return f"blk.{layer}.{_NAMES[module]}.{kind}"


def _read_bf16(path: Path) -> dict:
    """{name: bfloat16 bits} of a safetensors file that holds nothing else."""
    import numpy as np

    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    tensors = {}
    for name, entry in json.loads(bytes(data[8:start])).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], np.uint16).reshape(entry["shape"])
    return tensors


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        import llama_cpp
        import numpy as np

        self._llama, self._np = llama_cpp, np
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_mmap = False
        self._model = llama_cpp.llama_model_load_from_file(bytes(folder / _FILE), parameters)
        if not self._model:
            sys.exit("error: llama.cpp does not load the model")
        parameters = llama_cpp.llama_context_default_params()
        a_sequence = -(-(context + steps + 1) // 256) * 256
        parameters.n_seq_max, parameters.n_ctx, parameters.n_batch = 2, 2 * a_sequence, 2 * context
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            sys.exit("error: llama.cpp makes no context")
        self._batch = llama_cpp.llama_batch_init(2 * context, 0, 1)
        self._position = 0

    def forget(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._position = 0

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        tokens = self._decode(prompts)
        for index in self._last:
            peer.check_logits(self._logits(index))
        return tokens

    def step(self, tokens: list[int]) -> list[int]:
        return self._decode([[token] for token in tokens])

    def _decode(self, rows: list[list[int]]) -> list[int]:
        batch, count, self._last = self._batch, 0, []
        for sequence, row in enumerate(rows):
            for offset, token in enumerate(row):
                batch.token[count], batch.pos[count] = token, self._position + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = offset == len(row) - 1
                count += 1
            self._last.append(count - 1)
        batch.n_tokens = count
        if failed := self._llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {failed}")
        self._position += len(rows[0])
        return [int(self._logits(index).argmax()) for index in self._last]

    def _logits(self, index: int):
        pointer = self._llama.llama_get_logits_ith(self._context, index)
        return self._np.ctypeslib.as_array(pointer, (VOCAB_SIZE,))


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
