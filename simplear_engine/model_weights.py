"""The network's weights as the kernels want them: small ones borrowed or copied to the device, matrices packed.

Everything is derived from borrowed tensors (a mapped file, live parameters of a trainer) and can be derived again in
place when those have changed, so that a recorded program keeps its pointers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from simplear_engine import _C
from simplear_engine.config import ModelConfig
from simplear_engine.kernels.packed_weight import PackedWeight
from simplear_engine.weights import LM_HEAD

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Layer:
    input_norm: _C.Tensor  # [D]
    qkv: PackedWeight  # [(H + 2 G) E, D] queries, keys, values
    qkv_bias: _C.Tensor  # [(H + 2 G) E] float32
    o: PackedWeight  # [D, H E]
    post_norm: _C.Tensor  # [D]
    gate_up: PackedWeight  # [2 I, D] gate and up by turns
    down: PackedWeight  # [D, I]


class ModelWeights:
    """Weights of `config` ready for the ops, matrices in `dtype`, one of `backend.dtypes`.

    tensors: canonical name (weights.weight_specs) -> `_C.Tensor` of any float type; borrowed for the life of this object.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, _C.Tensor], dtype: str, backend):
        self.config, self.dtype = config, dtype
        self._tensors, self._backend = dict(tensors), backend
        self._refreshers = []  # none of them refers to this object: its memory goes with its last user
        self.embedding = self._vector(EMBEDDING)
        self.layers = [self._layer(f"model.layers.{i}.") for i in range(config.num_layers)]
        self.norm = self._vector("model.norm.weight")
        head = self._tensors[EMBEDDING if config.tie_word_embeddings else LM_HEAD]
        self.head = self._packed("head_sample", [head.rows(config.visual_offset, config.vocab_size)])

    def refresh(self) -> None:
        """Derives every copy anew, in place, from the borrowed tensors. No step may run meanwhile."""
        for refresh in self._refreshers:
            refresh()

    def _layer(self, prefix: str) -> Layer:
        def named(*suffixes):
            return [self._tensors[prefix + suffix] for suffix in suffixes]

        return Layer(
            input_norm=self._vector(prefix + "input_layernorm.weight"),
            qkv=self._packed("linear", named(*(f"self_attn.{x}_proj.weight" for x in "qkv"))),
            qkv_bias=self._concatenated(named(*(f"self_attn.{x}_proj.bias" for x in "qkv"))),
            o=self._packed("linear", named("self_attn.o_proj.weight")),
            post_norm=self._vector(prefix + "post_attention_layernorm.weight"),
            gate_up=self._packed("gate_up_silu", named("mlp.gate_proj.weight", "mlp.up_proj.weight"), interleaved=True),
            down=self._packed("linear", named("mlp.down_proj.weight")),
        )

    def _vector(self, name: str) -> _C.Tensor:
        """The tensor itself where kernels can read it, else a copy: on the device, or in float32."""
        tensor = self._tensors[name]
        return self._resident(tensor) if tensor.dtype in ("float32", "bfloat16") else self._concatenated([tensor])

    def _resident(self, tensor: _C.Tensor) -> _C.Tensor:
        resident = self._backend.resident(tensor)
        self._refreshers.append(partial(self._backend.refresh, resident, tensor))
        return resident

    def _concatenated(self, tensors: list[_C.Tensor]) -> _C.Tensor:
        """A float32 copy of the tensors, one after the other along the first dimension."""
        whole = _C.Tensor.zeros([sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:]], "float32")
        begin = 0
        for tensor in tensors:
            part = whole.rows(begin, begin + tensor.shape[0])
            self._derive(partial(self._backend.convert, tensor, part))
            begin += tensor.shape[0]
        return self._resident(whole)

    def _packed(self, op: str, parts: list[_C.Tensor], interleaved: bool = False) -> PackedWeight:
        packed = self._backend.pack(op, parts, self.dtype, interleaved)
        self._refreshers.append(partial(self._backend.pack_again, op, packed, parts, interleaved))
        return packed

    def _derive(self, derive) -> None:
        derive()
        self._refreshers.append(derive)
