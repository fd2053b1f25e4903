"""The engine as its users know it: from a checkpoint and a prompt to pictures.

This file turns arguments into requests for the C++ engine, waits for them and wraps what comes back. Scheduling, the
forward pass and sampling happen in C++ without Python; the network is recorded from forward.py.
"""

import atexit
import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simplear_engine import draft_file
from simplear_engine.config import GenerationDefaults, ModelConfig, check_given
from simplear_engine.dtypes import FLOATING
from simplear_engine.engine_options import (
    check_dtype,
    check_kv_dtype,
    num_cache_blocks,
    open_backend,
    open_image_tokenizer,
    positive,
)
from simplear_engine.errors import (
    CancelledError,
    CheckpointError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedError,
    shown,
)
from simplear_engine.generated_image import GeneratedImage
from simplear_engine.sampling import MAX_DRAFT_WINDOW, Sampling, check_ids, check_sampling

DEFAULT_MAX_PAIRS = 8
DEFAULT_PREFILL_CHUNK = 256
DEFAULT_MAX_QUEUE = 256
MAX_PAIRS = 4096
MAX_PREFILL_CHUNK = (1 << 16) - 1  # what the second side of a GPU's grid takes
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class _Prompt:
    """What one picture is asked from: ids for the engine, text for its metadata."""

    ids: list[int]
    negative_ids: list[int]
    text: str | None = None
    negative_text: str | None = None


def _stream_handle(stream) -> int:
    handle = getattr(stream, "cuda_stream", stream)
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 0:
        raise InvalidRequestError(
            f"stream: expected a torch.cuda.Stream or a CUDA stream's handle, got {shown(stream)}"
        )
    return handle


def _unguided(what: str, asked: float | None) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what}: has no effect without guidance; expected guidance_scale to be other than 1, got 1"
        + (" by default" if asked is None else "")
    )


# Closed before the interpreter is: no thread may wait inside the engine when there is no interpreter to come back to.
_open_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_engines() -> None:
    for engine in list(_open_engines):
        engine.close()


class Engine:
    """Generates images with one model on one device. Thread-safe: any thread may call any method.

    Make one with `from_pretrained` (a folder, a hub id, or "default") or `from_weights` (live tensors). `close()` it, or
    use it as a context manager, to end its threads before the process ends.
    """

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_pretrained(
        cls, model="default", *, device: str = "auto", dtype: str = "auto", image_tokenizer=None,
        kv_dtype: str = "auto", kv_cache_bytes: int | None = None, threads: int | None = None,
        max_pairs: int | None = None, prefill_chunk: int = DEFAULT_PREFILL_CHUNK, max_queue: int = DEFAULT_MAX_QUEUE,
        revision: str | None = None,
    ) -> "Engine":  # fmt: skip
        """Loads a checkpoint: "default" (the embedded model), a folder, or a hub id.

        device: "auto" (the first GPU, or the CPU where there is none), "cpu", "cuda" or "cuda:1". dtype: what weights are
        kept in: "float32", "bfloat16", on a CPU "int8" (a scale a row) or "int4" (a scale for 32), on a GPU "float8_e4m3" (a
        scale a row), or "auto" for what the checkpoint is stored in (bfloat16 for float16). All are rounded from the same
        checkpoint at load; docs/quantization.md says what that costs on a CPU. kv_dtype: what keys and
        values are kept in: "float32", "bfloat16", "int8" or, on a GPU, "float8_e4m3" (both with a scale for each token and
        head), or "auto" for float32 beside float32 weights and bfloat16 beside others. image_tokenizer: a folder or file that holds it, where the
        checkpoint's own `vq/` is not to be used. kv_cache_bytes: memory for keys and values; by default enough for
        `max_pairs` pictures of the checkpoint's default size and for one of the longest that the model knows, but at
        most a quarter of the machine's memory (what is never used is never taken). threads: worker threads (default:
        physical cores).
        max_pairs: pictures in flight at once (default 8); more wait in a queue of `max_queue`. prefill_chunk: prompt
        tokens a step. Raises CheckpointError, UnsupportedError, CapacityError or InvalidRequestError.
        """
        from simplear_engine import _C
        from simplear_engine.checkpoint import load_checkpoint, resolve

        backend = open_backend(device, threads)
        checkpoint = load_checkpoint(resolve(model, revision))
        # A folder goes by its whole path: of such a name pictures tell the last part only.
        is_folder = checkpoint.path == Path(model).expanduser()
        dtype = check_dtype(dtype, checkpoint.stored_dtype, backend)
        tensors = {}
        for name, stored in checkpoint.tensors.items():
            tensors[name] = _C.Tensor.from_numpy(stored.data, stored.dtype)
            if not _C.all_finite(tensors[name], backend.pool):
                raise CheckpointError(f"{stored.path}: {name} holds NaN or infinity")
        source = checkpoint.image_tokenizer_path if image_tokenizer is None else image_tokenizer
        draft_path = checkpoint.path / draft_file.FILE_NAME
        drafts = draft_file.read_drafts(draft_path, checkpoint.model.num_codes) if os.path.lexists(draft_path) else None
        engine = cls(
            checkpoint.model, tensors, dtype, backend, defaults=checkpoint.defaults, text=checkpoint.text,
            name=os.path.abspath(checkpoint.path) if is_folder else str(model),
            image_tokenizer=open_image_tokenizer(source, dtype, checkpoint, backend),
            kv_dtype=check_kv_dtype(kv_dtype, dtype, backend), kv_cache_bytes=kv_cache_bytes, max_pairs=max_pairs,
            prefill_chunk=prefill_chunk, max_queue=max_queue,
        )  # fmt: skip
        if drafts is not None:
            engine._core.insert_draft_entries(drafts)
        return engine

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: Mapping[str, object], *, defaults: GenerationDefaults | None = None,
        text=None, device: str = "auto", dtype: str = "auto", image_tokenizer=None, kv_dtype: str = "auto",
        kv_cache_bytes: int | None = None, threads: int | None = None, max_pairs: int | None = None,
        prefill_chunk: int = DEFAULT_PREFILL_CHUNK, max_queue: int = DEFAULT_MAX_QUEUE,
    ) -> "Engine":  # fmt: skip
        """An engine on tensors that somebody else owns and may change: {canonical name: tensor with DLPack}, on the host
        or on the engine's device.

        Names and shapes are those of `weights.weight_specs(config)`. The tensors are borrowed, not copied; after
        changing them in place call `weights_changed()`. `text` (a TextTokenizer) is needed for `generate`,
        `image_tokenizer` (a CosmosTokenizer) for pixels; without them `generate_from_ids` gives codes.
        """
        from simplear_engine.weights import weight_specs

        if not isinstance(config, ModelConfig):
            raise InvalidRequestError(f"config: expected a ModelConfig, got {shown(config)}")
        if not isinstance(weights, Mapping):
            raise InvalidRequestError(f"weights: expected tensors by name, got {shown(weights)}")
        defaults = GenerationDefaults() if defaults is None else defaults
        if not isinstance(defaults, GenerationDefaults):
            raise InvalidRequestError(f"defaults: expected GenerationDefaults, got {shown(defaults)}")
        check_given(config, defaults)
        if text is not None and not hasattr(text, "encode_prompt"):
            raise InvalidRequestError(f"text: expected a TextTokenizer, got {shown(text)}")
        if image_tokenizer is not None and not hasattr(image_tokenizer, "decode"):
            raise InvalidRequestError(f"image_tokenizer: expected a CosmosTokenizer, got {shown(image_tokenizer)}")
        backend = open_backend(device, threads)
        tensors, faults = {}, []
        for name, spec in weight_specs(config).items():
            if name not in weights:
                faults.append(f"{name}: missing, expected {list(spec.shape)}")
                continue
            try:
                tensors[name] = backend.borrow(weights[name])
            except (BufferError, RuntimeError, TypeError, ValueError) as error:  # whatever lender or borrower minds
                faults.append(f"{name}: {error}")
                continue
            if tensors[name].dtype not in FLOATING:
                faults.append(f"{name}: expected one of {', '.join(FLOATING)}, found {tensors[name].dtype}")
            if tensors[name].shape != spec.shape:
                faults.append(f"{name}: expected shape {list(spec.shape)}, found {list(tensors[name].shape)}")
        if faults:
            raise InvalidRequestError("weights do not fit the configuration:\n  " + "\n  ".join(faults))
        dtype = check_dtype(dtype, tensors["model.embed_tokens.weight"].dtype, backend)
        return cls(
            config, tensors, dtype, backend, defaults=defaults, text=text,
            name="weights", image_tokenizer=image_tokenizer, kv_dtype=check_kv_dtype(kv_dtype, dtype, backend),
            kv_cache_bytes=kv_cache_bytes, max_pairs=max_pairs, prefill_chunk=prefill_chunk, max_queue=max_queue,
        )  # fmt: skip

    def __init__(
        self, model, tensors, dtype, backend, *, defaults, text, name, image_tokenizer, kv_dtype, kv_cache_bytes,
        max_pairs, prefill_chunk, max_queue,
    ):  # fmt: skip
        from simplear_engine import _C
        from simplear_engine.backend import ACTIVATION_DTYPES
        from simplear_engine.forward import Activations, History, cache_block_bytes, forward, make_cache
        from simplear_engine.kernels.rope_append import BLOCK_SIZE
        from simplear_engine.model_weights import ModelWeights
        from simplear_engine.pixel_decoder import PixelDecoder

        self.model, self.defaults, self.dtype, self.device, self.name = model, defaults, dtype, backend.device, name
        self.kv_dtype = kv_dtype
        self.weights_version = 0
        self._text, self._backend, self._pid = text, backend, os.getpid()
        self._compression = image_tokenizer.compression if image_tokenizer else defaults.compression
        max_pairs = positive("max_pairs", DEFAULT_MAX_PAIRS if max_pairs is None else max_pairs, MAX_PAIRS)
        # A step always has room for one token of every picture in flight.
        max_tokens = max(positive("prefill_chunk", prefill_chunk, MAX_PREFILL_CHUNK), 2 * max_pairs)
        max_draws = max(max_pairs, MAX_DRAFT_WINDOW)
        self._weights = ModelWeights(model, tensors, dtype, backend)
        num_blocks = num_cache_blocks(
            model,
            defaults,
            cache_block_bytes(model, kv_dtype),
            BLOCK_SIZE,
            self._compression,
            max_pairs,
            kv_cache_bytes,
            backend.free_bytes(),
        )
        longest = -(-model.max_position_embeddings // BLOCK_SIZE)
        plan = _C.StepPlan(
            max_tokens=max_tokens,
            max_pairs=max_pairs,
            max_logit_rows=2 * max_draws,
            max_draws=max_draws,
            max_blocks_per_seq=min(longest, num_blocks),
        )
        self._plan, step = plan, backend.step_plan(plan)
        self._cache = make_cache(model, num_blocks, kv_dtype, backend.zeros)
        self._activations = Activations(model, plan, ACTIVATION_DTYPES[dtype], backend)
        self._history = History(model, plan, backend.history_length, backend) if backend.history_length else None
        self._program = backend.new_program()
        forward(backend.recorder(self._program), self._weights, step, self._cache, self._activations, self._history)
        self._pixels = PixelDecoder(image_tokenizer) if image_tokenizer else None
        self._runner = backend.runner(
            self._program, step, self._activations.logits.storage, self._history, model.visual_offset
        )
        self._is_closing = False
        self._core = _C.Engine(
            plan=plan,
            runner=self._runner,
            num_blocks=num_blocks, block_size=BLOCK_SIZE, max_queue=positive("max_queue", max_queue, 1 << 20),
            max_positions=model.max_position_embeddings, num_codes=model.num_codes, visual_offset=model.visual_offset,
        )  # fmt: skip
        _open_engines.add(self)

    @property
    def has_image_tokenizer(self) -> bool:
        """Whether codes can be turned into pixels."""
        return self._pixels is not None

    # ------------------------------------------------------------------ using it

    def generate(
        self, prompt: str | Sequence[str], *, negative_prompt: str | None = None, height: int | None = None,
        width: int | None = None, num_images: int = 1, guidance_scale: float | None = None, temperature: float = 1.0,
        top_k: int | None = None, top_p: float = 1.0, seed: int | None = None,
        on_progress: Callable[[int, int], None] | None = None, speculation: str | None = "auto",
        draft_window: int | None = None, draft_source: str | None = None,
    ) -> list[GeneratedImage]:  # fmt: skip
        """Draws `num_images` pictures of each prompt; those of one prompt have seeds seed, seed + 1, ...

        None stands for the checkpoint's own value, except where this text says otherwise. height, width: pixels, multiples
        of the compression. guidance_scale 1 switches guidance off; to give a negative prompt then is an error. temperature
        0 is greedy. top_k = the model's number of codes and top_p 1 keep every code. seed None is a random one.
        speculation guesses codes ahead and verifies several of them in one step: fewer steps, the very same images. "auto"
        verifies as many as pay, at most draft_window (1..64) less one; "jacobi" always that many (default
        8); None: no guesses. Three modes are inexact, to be compared with: the picture depends on guesses and may depend on
        the engine's load; its metadata says so. "ratio" keeps a guess by its probability over that under which it was guessed, "simplear" is
        SimpleAR's own rule (both: csrc/core/ratio_test.h; guesses "left" or "above"), "neighbours" also keeps a guess one
        lattice step of the tokenizer beside the code drawn in its place.
        draft_source says where guesses come from: "context" (what followed such neighbours before; the default on a CPU), "left" (the
        default on a GPU), "above", "marginal" or "previous" (the code at this position in earlier images, those of the same prompt).
        on_progress(done, total) is called in this thread with image tokens. An exception in it, or Ctrl-C, cancels the
        call's requests and goes on to the caller. Raises InvalidRequestError, CapacityError, QueueFullError,
        NumericalError, UnsupportedError, and CancelledError where the engine is closed meanwhile.
        """
        if self._text is None:
            raise InvalidRequestError("this engine has no text tokenizer: use generate_from_ids")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, (list, tuple)) or not prompts:
            raise InvalidRequestError(f"prompt: expected a string or a list of strings, got {shown(prompt)}")
        sampling = self._check(
            height=height, width=width, num_images=num_images, guidance_scale=guidance_scale, temperature=temperature,
            top_k=top_k, top_p=top_p, seed=seed, speculation=speculation, draft_window=draft_window,
            draft_source=draft_source,
        )  # fmt: skip
        if not isinstance(negative_prompt, (str, type(None))):
            raise InvalidRequestError(f"negative_prompt: expected a str, got {shown(negative_prompt)}")
        if negative_prompt and sampling.guidance_scale == 1:
            raise _unguided("negative_prompt", guidance_scale)
        negative_text = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        negative_ids = self._text.encode_negative(negative_text, self.defaults)
        wanted = [
            _Prompt(self._text.encode_prompt(text, self.defaults), negative_ids, text, negative_text)
            for text in prompts
        ]
        return self._draw(wanted, sampling, on_progress)

    def generate_from_ids(
        self, prompt_ids: Sequence[int], negative_ids: Sequence[int] | None = None, *, height: int | None = None,
        width: int | None = None, num_images: int = 1, guidance_scale: float | None = None, temperature: float = 1.0,
        top_k: int | None = None, top_p: float = 1.0, seed: int | None = None,
        on_progress: Callable[[int, int], None] | None = None, speculation: str | None = "auto",
        draft_window: int | None = None, draft_source: str | None = None,
    ) -> list[GeneratedImage]:  # fmt: skip
        """As `generate`, from the ids of a whole conditional prompt (begin and end tokens included) and of the
        unconditional one, which guidance_scale 1 does without: None then."""
        sampling = self._check(
            height=height, width=width, num_images=num_images, guidance_scale=guidance_scale, temperature=temperature,
            top_k=top_k, top_p=top_p, seed=seed, speculation=speculation, draft_window=draft_window,
            draft_source=draft_source,
        )  # fmt: skip
        negative = [] if negative_ids is None else check_ids("negative_ids", negative_ids, self.model)
        if not negative and sampling.guidance_scale != 1:
            raise InvalidRequestError(
                f"negative_ids: expected at least one token where guidance_scale is {sampling.guidance_scale:g}"
            )
        if negative and sampling.guidance_scale == 1:
            raise _unguided("negative_ids", guidance_scale)
        return self._draw([_Prompt(check_ids("prompt_ids", prompt_ids, self.model), negative)], sampling, on_progress)

    def score_from_ids(self, prompt_ids: Sequence[int], tokens) -> np.ndarray:
        """float32 [h*w, codes]: conditional logits over the visual codes at every image position, teacher-forced.

        tokens: int codes, [h, w] or flat. Row i is the prediction of tokens[i] from the prompt and tokens[:i]: no
        guidance, no temperature.
        """
        from simplear_engine import _C

        try:
            tokens = np.asarray(tokens)
        except ValueError:
            raise InvalidRequestError(f"tokens: expected integer codes, got {shown(tokens)}") from None
        if tokens.dtype.kind not in "iu" or tokens.size == 0:
            raise InvalidRequestError(f"tokens: expected integer codes, got {tokens.dtype} {list(tokens.shape)}")
        prompt_ids, longest = check_ids("prompt_ids", prompt_ids, self.model), self.model.max_position_embeddings
        if len(prompt_ids) + tokens.size > longest:
            raise InvalidRequestError(
                f"tokens: expected at most {longest - len(prompt_ids)} behind a prompt of {len(prompt_ids)}, got {tokens.size}"
            )
        for code in (int(tokens.min()), int(tokens.max())):
            if not 0 <= code < self.model.num_codes:
                raise InvalidRequestError(f"tokens: expected codes in 0..{self.model.num_codes - 1}, got {code}")
        scores = np.empty((tokens.size, self.model.num_codes), np.float32)
        request = _C.Request()
        request.prompt = prompt_ids
        request.forced_codes = [int(code) for code in tokens.reshape(-1)]
        request.num_image_tokens = tokens.size
        request.top_k = self.model.num_codes
        request.scores = _C.Tensor.from_numpy(scores)
        self._check_process()
        self._run([request], tokens.size, None, lambda index: None)
        return scores

    def weights_changed(self) -> None:
        """Says that the borrowed weights were changed in place: packed copies and cached prompts are derived anew.

        Waits for the step under way; pictures in flight go on with the new weights.
        """
        self._check_process()
        with self._core.pause(weights_change=True):
            self._weights.refresh()
            self.weights_version += 1

    def wait_stream(self, stream) -> None:
        """On a GPU: what the engine reads and computes from now on comes after all that has been enqueued on `stream` so
        far (a torch.cuda.Stream, or a CUDA stream's handle). Call it after changing borrowed weights there, before
        `weights_changed()`."""
        handle = self._foreign_stream(stream)
        self._between_steps(lambda own: self._backend.order(handle, own))

    def release_to_stream(self, stream) -> None:
        """On a GPU: what is enqueued on `stream` from now on comes after all that the engine has begun so far. Call it
        before changing borrowed weights there."""
        handle = self._foreign_stream(stream)
        self._between_steps(lambda own: self._backend.order(own, handle))

    def _foreign_stream(self, stream) -> int:
        if self._backend.stream is None:
            raise UnsupportedError("streams: this engine computes on the CPU, where every call has ended on return")
        return _stream_handle(stream)

    def _between_steps(self, order: Callable[[int], None]) -> None:
        """Calls order(stream) for both of the engine's streams while nothing is being enqueued or captured on them."""
        self._check_process()
        with self._core.pause(weights_change=False):
            order(self._backend.stream)
            order(self._runner.stream)

    def stats(self) -> dict:
        """Counters since the start (num_steps, num_tokens, busy_seconds; num_drafts_verified and num_drafts_kept by place in
        the draft window) and what is going on now (num_running, num_waiting, num_blocks, num_free_blocks)."""
        self._check_process()
        return self._core.stats()

    def save_drafts(self, path, min_seen: int = 1) -> int:
        """Writes what was learnt about the codes of this model's pictures, for `drafts.safetensors` in a checkpoint's
        folder; returns the number of entries (8 bytes each). min_seen: leave out neighbours that occurred more rarely."""
        self._check_process()
        min_seen = positive("min_seen", min_seen, 1 << 16)
        entries = self._core.draft_entries(min_seen)
        draft_file.write_drafts(path, entries)
        return entries.shape[1]

    def close(self) -> None:
        """Ends the engine: requests in flight end with CancelledError, and there are no new ones. May be called twice. What
        it takes of memory and of threads that sleep goes with the last reference to it."""
        core = getattr(self, "_core", None)
        if core is not None and os.getpid() == self._pid:
            self._is_closing = True
            core.stop()
            if self._pixels is not None:
                self._pixels.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.name!r}, device={self.device!r}, dtype={self.dtype!r}, isa={self._backend.isa!r})"

    # ------------------------------------------------------------------ inside

    def _check(self, **parameters) -> Sampling:
        return check_sampling(self.defaults, self.model, self._compression, **parameters)

    def _check_process(self) -> None:
        _check_process(self._pid)

    def _draw(self, prompts: list[_Prompt], sampling: Sampling, on_progress) -> list[GeneratedImage]:
        self._check_process()
        if on_progress is not None and not callable(on_progress):
            raise InvalidRequestError(f"on_progress: expected a function of (done, total), got {shown(on_progress)}")
        wanted = [(prompt, sampling.seed + i) for prompt in prompts for i in range(sampling.num_images)]
        requests = [self._request(prompt, seed, sampling) for prompt, seed in wanted]
        images: list[GeneratedImage | None] = [None] * len(requests)

        def collect(index: int) -> None:
            images[index] = self._image(requests[index], *wanted[index], sampling)

        self._run(requests, sampling.grid[0] * sampling.grid[1] * len(requests), on_progress, collect)
        return images

    def _request(self, prompt: _Prompt, seed: int, sampling: Sampling):
        from simplear_engine import _C

        request = _C.Request()
        request.prompt = prompt.ids
        request.negative = prompt.negative_ids if sampling.guidance_scale != 1 else []
        request.num_image_tokens = sampling.grid[0] * sampling.grid[1]
        request.guidance_scale = sampling.guidance_scale
        request.temperature = sampling.temperature
        request.top_k = self.model.num_codes if sampling.top_k is None else sampling.top_k
        request.top_p = sampling.top_p
        request.seed = seed
        # A device runs ahead of the host, which keeps the table of drafts: guesses are those that it can make by itself.
        is_cpu = self.device == "cpu"
        request.adapts_window = sampling.adapts_window
        request.draft_window = sampling.draft_window
        request.draft_source = sampling.draft_source or ("context" if is_cpu and not sampling.inexact else "left")
        request.grid_width = sampling.grid[1]
        if sampling.inexact:
            self._relax(request, sampling.inexact)
        return request

    def _relax(self, request, mode: str) -> None:
        if self.device != "cpu":
            raise UnsupportedError(f'speculation: "{mode}" runs on the CPU only, and this engine is on {self.device}')
        if mode != "neighbours":
            request.draft_rule = mode
        elif self._pixels is None:
            raise UnsupportedError(f'speculation: "{mode}" needs an image tokenizer, whose codes it compares')
        else:
            request.relaxed_levels = list(self._pixels.levels)

    def _run(self, requests: list, total: int, on_progress, collect: Callable[[int], None]) -> None:
        """Submits the requests as the queue has room, waits for all of them, collects each in order."""
        waiting, done = deque(enumerate(requests)), deque()
        try:
            while waiting or done:
                while waiting:
                    try:
                        self._core.submit(waiting[0][1])
                    except QueueFullError:
                        # Somebody else may have filled it; ours are then the ones to refuse.
                        if not done:
                            raise
                        break
                    except InvalidRequestError:
                        # Closed when a part of this call was in already: the call is in flight, and not invalid.
                        if self._is_closing and waiting[0][0] > 0:
                            raise CancelledError("the engine was closed") from None
                        raise
                    done.append(waiting.popleft())
                index, request = done[0]
                self._wait([request], total, on_progress, requests)
                collect(index)
                done.popleft()
        except BaseException:
            # An interrupt may have come between a submit and its note of it.
            for request in requests:
                self._core.cancel(request)
            for _, request in done:
                request.wait(60.0)
            raise

    def _wait(self, requests: list, total: int, on_progress, all_requests: list | None = None) -> None:
        """Until each ended; its error is raised here."""
        for request in requests:
            ended = False
            while not ended:
                ended = request.wait(_POLL_SECONDS)
                if on_progress is not None:
                    on_progress(sum(r.num_done for r in all_requests or requests), total)
            request.raise_if_failed()

    def _image(self, request, prompt: _Prompt, seed: int, sampling: Sampling) -> GeneratedImage:
        tokens = request.codes.reshape(sampling.grid)
        timings = dict(request.timings)
        if self._pixels is not None:
            pixels = _pixels_of(self._pixels.start(tokens, timings), self._pid)
        else:
            pixels = _no_pixels
        return GeneratedImage(
            tokens=tokens, log_probs=request.log_probs.reshape(sampling.grid), seed=seed, prompt=prompt.text,
            negative_prompt=prompt.negative_text if sampling.guidance_scale != 1 else None,
            guidance_scale=sampling.guidance_scale, temperature=sampling.temperature, top_k=sampling.top_k,
            top_p=sampling.top_p, height=sampling.height, width=sampling.width, model=self.name, _timings=timings,
            num_steps=request.num_steps, accepted_lens=request.accepted_lens,
            draft_counts=request.draft_counts, inexact=sampling.inexact, _pixels=pixels,
        )  # fmt: skip


# A picture that is kept must not keep its engine, so these know nothing of it.


def _check_process(pid: int) -> None:
    if os.getpid() != pid:
        raise UnsupportedError(
            "this engine was made in another process: threads do not survive fork(), so make the engine in the "
            'child, or start children with multiprocessing\'s "spawn"'
        )


def _pixels_of(decoding, pid: int) -> Callable[[], np.ndarray]:
    def pixels() -> np.ndarray:
        if decoding.pixels is None:
            _check_process(pid)  # the thread that makes them is there only
        return decoding.result()

    return pixels


def _no_pixels() -> np.ndarray:
    raise UnsupportedError(
        "this checkpoint has no image tokenizer (no folder vq/): pass image_tokenizer= a folder with decoder.jit or a "
        ".safetensors file; the codes are in .tokens"
    )
