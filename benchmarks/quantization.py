"""What rounding the weights costs: pictures and next-code distributions of each dtype against float32.

    python benchmarks/quantization.py [--seeds 2] [--threads N] [--art FOLDER] [--scenes 1000] [--activations]

The embedded model draws the prompts of simplear_train/nearest_scene.py in float32 at its own settings. Every row of the
table then scores these codes, teacher-forced with the conditional prompt: KL(float32 || row) of the next code in nats,
how often the likeliest code is another one, the mean of -log p(code), and total variation between what is sampled from
(guidance, top-k). Each row also draws the same pictures from the same seeds. Rows "weights only" round the weights like
that dtype and compute in float32, so the rest is what rounded activations and keys and values in bfloat16 add. One row
keeps keys and values in int8 beside float32 weights.
Intervals are 95 % bootstrap intervals over prompts; all pictures of a prompt stay together.

--art: a cache folder of simplear_train/sprites.py (fetched with npm where it is empty; needs resvg-py). With it the rows
also score held-out rendered scenes, and the judge of nearest_scene.py says whether pictures show what was asked for.
--activations: what rounded activations alone cost, with a scale for 32 neighbours and with one for a row, in torch.

Before anything is counted, the scores of each row must give the log-probabilities that the same engine reports for codes
that it draws itself. The last line is JSON.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from simplear_engine import Engine
from simplear_engine.checkpoint import load_checkpoint, resolve
from simplear_engine.dtypes import to_float32
from simplear_engine.kernels.packed_weight import PackedWeight
from simplear_engine.kernels.quantization import GROUP, QUANTIZED, Quantized, product, quantize_rows, quantize_weight
from simplear_engine.weights import LM_HEAD
from simplear_train.emoji_scenes import SceneMaker
from simplear_train.nearest_scene import NearestScene, requests

DRAWING = {dtype: {"dtype": dtype} for dtype in ("float32", "bfloat16", *QUANTIZED)}
DRAWING["float32, int8 keys and values"] = {"dtype": "float32", "kv_dtype": "int8"}
REFERENCE = "float32"
RESAMPLES = 1000
HELD_OUT_SEED = 1  # the validation stream of simplear_train/extract_tokens.py


# ------------------------------------------------------------------ engines


def with_rounded_weights(dtype: str, threads: int | None) -> Engine:
    """A float32 engine on the matrices that `dtype` makes of the embedded model; embeddings stay as they are."""
    checkpoint = load_checkpoint(resolve("default"))
    weights = {name: np.array(to_float32(t.data, t.dtype)) for name, t in checkpoint.tensors.items()}
    model = checkpoint.model
    if model.tie_word_embeddings:
        weights[LM_HEAD] = weights["model.embed_tokens.weight"]
        model = dataclasses.replace(model, tie_word_embeddings=False)
    for name, weight in weights.items():
        if weight.ndim == 2 and name != "model.embed_tokens.weight":
            weights[name] = quantize_weight(weight, dtype).values()[:, : weight.shape[1]].copy()
    return Engine.from_weights(
        model, weights, defaults=checkpoint.defaults, text=checkpoint.text, dtype="float32", threads=threads
    )


def packed_bytes(engine: Engine) -> int:
    """Bytes of every packed matrix, as the engine holds them."""
    weights = engine._weights
    matrices = [value for layer in weights.layers for value in vars(layer).values()] + [weights.head]
    return sum(matrix.storage.nbytes for matrix in matrices if isinstance(matrix, PackedWeight))


def num_weights(engine: Engine) -> int:
    """Elements of the matrices that a step multiplies with."""
    model = engine.model
    query, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    in_layer = model.hidden_size * (2 * query + 2 * kv + 3 * model.intermediate_size)
    return model.num_layers * in_layer + model.num_codes * model.hidden_size


def check(name: str, engine: Engine) -> None:
    """Scores are logits of what is sampled from, or the program ends."""
    prompt = "a red apple"
    ids = engine._text.encode_prompt(prompt, engine.defaults)
    drawn = engine.generate_from_ids(ids, seed=0, guidance_scale=1, top_k=engine.model.num_codes)[0]
    scored = log_softmax(engine.score_from_ids(ids, drawn.tokens))
    error = np.abs(scored[np.arange(len(scored)), drawn.tokens.ravel()] - drawn.log_probs.ravel()).max()
    if error > 1e-4:
        sys.exit(f"wrong: {name} scores its own codes {error:.2g} nats off what it drew them with")


# ------------------------------------------------------------------ distributions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def sampled_from(conditional: np.ndarray, unconditional: np.ndarray, scale: float, top_k: int) -> np.ndarray:
    """Probabilities [positions, codes] after guidance and top-k."""
    guided = unconditional + scale * (conditional - unconditional)
    threshold = np.partition(guided, -top_k, axis=1)[:, -top_k, None]
    return np.exp(log_softmax(np.where(guided < threshold, -np.inf, guided)))


def compared(engines: dict[str, Engine], prompt: str, codes: np.ndarray, guided: bool) -> dict[str, dict]:
    """For each engine what it makes of one picture: arrays over its positions."""
    result, base, base_sampled = {}, None, None
    for name, engine in engines.items():  # the reference is the first
        defaults = engine.defaults
        logits = engine.score_from_ids(engine._text.encode_prompt(prompt, defaults), codes)
        log_p = log_softmax(logits)
        base = log_p if base is None else base
        result[name] = {
            "kl": (np.exp(base) * (base - log_p)).sum(axis=1),
            "argmax_differs": log_p.argmax(axis=1) != base.argmax(axis=1),
            "nats_per_code": -log_p[np.arange(len(log_p)), codes.ravel()],
        }
        if guided:
            bare = engine._text.encode_negative(defaults.negative_prompt, defaults)
            probs = sampled_from(logits, engine.score_from_ids(bare, codes), defaults.guidance_scale, defaults.top_k)
            base_sampled = probs if base_sampled is None else base_sampled
            result[name]["total_variation"] = np.abs(probs - base_sampled).sum(axis=1) / 2
    return result


def stacked(pictures: list[dict[str, dict]], num_prompts: int) -> dict[str, dict[str, np.ndarray]]:
    """Row -> quantity -> [prompts, positions of all its pictures]; pictures are seed after seed, all prompts of each."""
    table = {}
    for name, quantities in pictures[0].items():
        table[name] = {}
        for quantity in quantities:
            values = np.stack([picture[name][quantity] for picture in pictures])
            table[name][quantity] = values.reshape(-1, num_prompts, values.shape[1]).swapaxes(0, 1).reshape(
                num_prompts, -1
            )  # fmt: skip
    return table


def interval(values: np.ndarray, statistic=np.mean) -> list[float]:
    """[statistic, low, high] of values [prompts, ...], the last two from resampled prompts."""
    rng = np.random.default_rng(0)
    if statistic is np.mean:  # prompts are equally large, so that their means are enough
        values = values.reshape(len(values), -1).mean(axis=1)
    resampled = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(RESAMPLES)]
    return [float(statistic(values)), *(float(x) for x in np.percentile(resampled, (2.5, 97.5)))]


def percentile_99(values: np.ndarray) -> float:
    return float(np.percentile(values, 99))


# ------------------------------------------------------------------ pictures


def draw(engine: Engine, prompts: list[str], seeds: int) -> list:
    """Seed after seed, all prompts of each; no two pictures share a seed."""
    return [
        engine.generate(prompt, seed=round_ * len(prompts) + i)[0]
        for round_ in range(seeds)
        for i, prompt in enumerate(prompts)
    ]


def agreement(images: list, expected: list, num_prompts: int) -> dict:
    """How many pictures are the same codes, and how long the others are."""
    differs = np.stack([a.tokens.ravel() != b.tokens.ravel() for a, b in zip(images, expected, strict=True)])
    same = ~differs.any(axis=1)
    firsts = differs.argmax(axis=1)[~same]
    # Codes drawn after equal histories; behind the first difference the two pictures are different ones.
    comparable = int(same.sum()) * differs.shape[1] + int((firsts + 1).sum())
    return {
        "same_picture": interval(same.reshape(-1, num_prompts).T.astype(float)),
        "codes_before_difference_median": float(np.median(firsts)) if len(firsts) else None,
        "differing_code_per": comparable / len(firsts) if len(firsts) else None,
    }


def judged(judge: NearestScene, images: list, asked: list) -> dict[str, np.ndarray]:
    """Kind -> bool [prompts, seeds]: does the picture show what was asked for?"""
    passed = {}
    for i, (kind, _, seen) in enumerate(asked):
        shown = [judge.shows(kind, np.asarray(image.pil), seen) for image in images[i :: len(asked)]]
        passed.setdefault(kind, []).append(shown)
    return {kind: np.array(values) for kind, values in passed.items()}


def held_out_scenes(engine: Engine, count: int, art: Path) -> list[tuple[str, np.ndarray]]:
    """(caption, codes) of scenes that training never saw, encoded by the model's own tokenizer in float32."""
    from simplear_engine.image import CosmosTokenizer

    maker = SceneMaker(HELD_OUT_SEED, engine.defaults.height, art)
    tokenizer = CosmosTokenizer.from_pretrained(load_checkpoint(resolve("default")).image_tokenizer_path)
    scenes = []
    for i in range(count):
        pixels = maker.picture(i).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
        scenes.append((maker.scene(i).caption, tokenizer.encode(pixels)[0]))
    return scenes


# ------------------------------------------------------------------ the format alone


def format_errors() -> dict[str, dict[str, list[float]]]:
    """Relative rms error of a product of 64 rows with a Gaussian [896, 896] matrix, in NumPy: weights and activations
    -> [activations with a scale for 32, with a scale for the row]. With outliers, six channels are 50 times larger;
    "ordinary channels" is the error over what the other 890 channels contribute to the product."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((896, 896)).astype(np.float32)
    plain = rng.standard_normal((64, 896)).astype(np.float32)
    with_outliers, loud = plain.copy(), rng.choice(896, 6, replace=False)
    with_outliers[:, loud] *= 50
    ordinary = with_outliers.copy()
    ordinary[:, loud] = 0
    result = {}
    for dtype in QUANTIZED:
        rounded = quantize_weight(weight, dtype)
        result[dtype] = {}
        cases = (("Gaussian", plain, plain), ("outliers", with_outliers, with_outliers),
                 ("outliers, ordinary channels", with_outliers, ordinary))  # fmt: skip
        for case, x, of in cases:
            exact, size = x.astype(np.float64) @ weight.T, np.std(of.astype(np.float64) @ weight.T)
            result[dtype][case] = [
                float(np.std(product(rounding(x), rounded) - exact) / size) for rounding in (quantize_rows, one_scale)
            ]
    return result


def one_scale(x: np.ndarray) -> Quantized:
    """As quantize_rows, with one scale for a whole row: what the engine does not do."""
    scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    return Quantized(np.rint(x / scales).astype(np.int32), np.repeat(scales, x.shape[1] // GROUP, axis=1))


def activations_alone(engine: Engine, prompts: list[str], images: list, num_prompts: int) -> dict[str, list[float]]:
    """Mean KL to float32 where products take rows in int8 and everything else is float32, by what shares a scale."""
    import torch

    from simplear_train.model_folder import load_model

    model = load_model(resolve("default"))
    group = None

    def rounded(x):
        if group is None:
            return x
        parts = x.unflatten(-1, (-1, group or x.shape[-1]))
        scales = (parts.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-35)
        return ((parts / scales).round() * scales).flatten(-2)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: rounded(inputs[0]))
    kl = {"32 neighbours": [], "the row": []}
    offset = engine.model.visual_offset
    with torch.no_grad():
        for prompt, image in zip(prompts, images, strict=True):
            ids = engine._text.encode_prompt(prompt, engine.defaults)
            all_ids = torch.tensor([ids + [int(code) + offset for code in image.tokens.ravel()[:-1]]])
            log_p = []
            for group in (None, GROUP, 0):
                hidden = rounded(model.hidden(all_ids)[0, len(ids) - 1 :])
                log_p.append(log_softmax((hidden @ model.head_table[offset:].T).numpy()))
            for values, other in zip(kl.values(), log_p[1:], strict=True):
                values.append((np.exp(log_p[0]) * (log_p[0] - other)).sum(axis=1))
    return {
        name: interval(np.stack(values).reshape(-1, num_prompts, image.tokens.size).swapaxes(0, 1))
        for name, values in kl.items()
    }


# ------------------------------------------------------------------ report


def spread(triple: list[float], scale: float = 1, digits: int = 4) -> str:
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*(scale * x for x in triple), d=digits)


def report(rows: dict[str, dict], formats: dict) -> None:
    for name, row in rows.items():
        print(f"\n{name}")
        if "packed_bytes" in row:
            print(f"  {row['packed_bytes'] / 1e6:.2f} MB packed, {row['bytes_per_weight']:.3f} bytes a weight")
        for codes in ("drawn", "held_out"):
            if codes not in row:
                continue
            part = row[codes]
            print(f"  {codes} codes: {part['nats_per_code'][0]:.4f} nats per code", end="")
            print(f" ({spread(part['nats_above_reference'])} above {REFERENCE})")
            print(f"    KL mean {spread(part['kl_mean'], 1e3, 3)}e-3   99th percentile {spread(part['kl_p99'], 1, 4)}")
            print(f"    likeliest code differs at {spread(part['argmax_differs'], 100, 2)} %")
            if "total_variation" in part:
                print(f"    total variation of what is sampled {spread(part['total_variation'], 100, 2)} %")
        if "pictures" in row:
            part = row["pictures"]
            print(f"  same codes from the same seed: {spread(part['same_picture'], 100, 1)} %", end="")
            if part["differing_code_per"]:
                print(
                    f"; others after {part['codes_before_difference_median']:.0f} codes (median);"
                    f" one code in {part['differing_code_per']:.0f} differs after the same codes",
                    end="",
                )
            print()
        for kind, part in row.get("judge", {}).items():
            print(
                f"  judged right, {kind}: {spread(part['right'], 1, 3)}   minus {REFERENCE}: {spread(part['minus'], 1, 3)}"
            )
    print("\nerror of one product, NumPy: activations with a scale for 32 / with a scale for the row")
    for dtype, cases in formats.items():
        print(f"  {dtype}: " + "   ".join(f"{c} {a * 100:.2f} % / {b * 100:.2f} %" for c, (a, b) in cases.items()))


def summary(of: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict:
    result = {
        "kl_mean": interval(of["kl"]),
        "kl_p99": interval(of["kl"], percentile_99),
        "argmax_differs": interval(of["argmax_differs"]),
        "nats_per_code": interval(of["nats_per_code"]),
        "nats_above_reference": interval(of["nats_per_code"] - reference["nats_per_code"]),
    }
    if "total_variation" in of:
        result["total_variation"] = interval(of["total_variation"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--art", type=Path, help="cache folder of simplear_train/sprites.py; without it, no judge")
    parser.add_argument("--scenes", type=int, default=1000, help="held-out scenes to score")
    parser.add_argument("--activations", action="store_true", help="also round activations alone; needs torch")
    parser.add_argument("--prompts", type=int, help="only the first so many")
    options = parser.parse_args()

    asked = requests()[: options.prompts]
    prompts = [prompt for _, prompt, _ in asked]
    drawing = {name: Engine.from_pretrained("default", threads=options.threads, **how) for name, how in DRAWING.items()}
    scoring = drawing | {f"{d}, weights only": with_rounded_weights(d, options.threads) for d in QUANTIZED}
    for name, engine in scoring.items():
        check(name, engine)

    images = {name: draw(engine, prompts, options.seeds) for name, engine in drawing.items()}
    drawn = stacked(
        [
            compared(scoring, prompt, image.tokens, guided=True)
            for prompt, image in zip(prompts * options.seeds, images[REFERENCE], strict=True)
        ],
        len(prompts),
    )
    rows = {}
    for name, engine in scoring.items():
        rows[name] = {"drawn": summary(drawn[name], drawn[REFERENCE])}
        if name in drawing:
            rows[name]["packed_bytes"] = packed_bytes(engine)
            rows[name]["bytes_per_weight"] = packed_bytes(engine) / num_weights(engine)
            rows[name]["pictures"] = agreement(images[name], images[REFERENCE], len(prompts))
    if options.art:
        scenes = held_out_scenes(drawing[REFERENCE], options.scenes, options.art)
        pictures = [compared(scoring, caption, codes, guided=False) for caption, codes in scenes]
        held_out = stacked(pictures, len(scenes))
        judge = NearestScene(drawing[REFERENCE].defaults.height, options.art)
        right = {name: judged(judge, images[name], asked) for name in drawing}
        for name in scoring:
            rows[name]["held_out"] = summary(held_out[name], held_out[REFERENCE])
        for name in drawing:
            rows[name]["judge"] = {
                kind: {"right": interval(values), "minus": interval(values.astype(float) - right[REFERENCE][kind])}
                for kind, values in right[name].items()
            }
    formats = format_errors()
    activations = {}
    if options.activations:
        activations = activations_alone(drawing[REFERENCE], prompts * options.seeds, images[REFERENCE], len(prompts))
    print(f"embedded model, {len(prompts)} prompts x {options.seeds} seeds, codes drawn in {REFERENCE}")
    if not options.art:
        print("no --art: neither held-out scenes nor the judge")
    report(rows, formats)
    for scale_for, kl in activations.items():
        print(f"activations alone in int8, a scale for {scale_for}: KL mean {spread(kl, 1e3, 3)}e-3")
    counts = {"prompts": len(prompts), "seeds": options.seeds, "scenes": options.scenes if options.art else 0}
    print(
        json.dumps(
            {
                "benchmark": "quantization",
                **counts,
                "rows": rows,
                "product_error": formats,
                "activations_alone_kl": activations,
            }
        )
    )


if __name__ == "__main__":
    main()
