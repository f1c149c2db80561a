"""How fast are the kernels here? python -m pallas_kernels.bench --all --json out.json

Each case of each op against the reference (XLA), JAX's own attention or bfloat16 product, and tokamax or qwix where they are
installed. The arms take turns on fresh random inputs; each number is a median; beside it stands the arm's largest error, and
what the device's own copy bandwidth and product rate, measured in the same run, would allow (roofline). Without an
accelerator the kernels run in the interpreter at a tiny size: that shows that the script works, its times mean nothing.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_causal_attention import cases as block_cases
from pallas_kernels.block_causal_attention import reference as block_reference
from pallas_kernels.cached_attention import cases as cached_cases
from pallas_kernels.cached_attention import reference as cached_reference
from pallas_kernels.implementation import ACCELERATORS, compiled_for, load, platforms, refusal
from pallas_kernels.norm_modulate import cases as norm_cases
from pallas_kernels.norm_modulate import reference as norm_reference
from pallas_kernels.quantized_matmul import cases as quantized_cases
from pallas_kernels.quantized_matmul import reference as quantized_reference
from pallas_kernels.softmax_attention import is_narrow, widened

OPS = ("block_causal_attention", "cached_attention", "norm_modulate", "quantized_matmul")
INPUTS = 4
LEAST_S = 0.02
"""One timing covers as many calls as take this long, so that the host's part of a call is hidden behind the device's."""


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What this device does at best, measured: the roof over every other number.

    Attributes:
      bandwidth: Bytes a second of a copy, read and written.
      rate: Floating-point operations a second of a square product of bfloat16; products of 8 bits may pass it.
    """

    bandwidth: float
    rate: float


@dataclasses.dataclass(frozen=True)
class Work:
    """One op at one shape, forward or with its gradient.

    Attributes:
      arms: Name -> function of the arguments.
      flops: Operations of its products; of attention, on pairs of tokens that see each other.
      bytes: Every input read and every output written once.
      skipped: Name -> why an arm is not here.
    """

    op: str
    case: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    arguments: Callable[[int], tuple[Any, ...]]
    arms: dict[str, Callable[..., Any]]
    flops: float
    bytes: float
    skipped: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm of one work.

    Attributes:
      error: Largest difference from the reference in float32, over the largest value.
      of_roof: Share of the time that the ceilings allow at best.
    """

    op: str
    case: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    arm: str
    median_us: float | None
    error: float | None
    of_roof: float | None
    note: str = ""


def measure(work: Work, ceilings: Ceilings, rounds: int) -> list[Row]:
    """A row for each arm of the work."""
    head = (work.op, work.case, work.kind, work.dtype, work.shape)
    inputs = [jax.device_put(work.arguments(seed)) for seed in range(INPUTS)]
    exact, rows, arms, calls, errors = _exact(work, inputs[0]), [], {}, {}, {}
    for name, function in work.arms.items():
        try:
            arms[name] = jax.jit(function)
            errors[name] = _error(arms[name](*inputs[0]), exact)
            calls[name] = max(1, round(LEAST_S / max(_seconds(arms[name], inputs, 1), 1e-7)))
        except Exception as error:  # noqa: BLE001  another library's kernel refuses as it likes
            del arms[name]
            rows.append(Row(*head, name, None, None, None, f"refused: {' '.join(str(error).split())[:160]}"))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name in random.sample(list(arms), len(arms)):
            times[name].append(_seconds(arms[name], inputs, calls[name]))
    best_s = max(work.flops / ceilings.rate, work.bytes / ceilings.bandwidth)
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rows.append(Row(*head, name, 1e6 * median, errors[name], best_s / median))
    return rows + [Row(*head, name, None, None, None, why) for name, why in work.skipped.items()]


def _exact(work: Work, inputs: tuple[Any, ...]) -> Any:
    """The reference in float32; on the host where its logits need more memory than the device has."""
    wide = jax.tree.map(_in_float32, inputs)
    try:
        return jax.device_get(jax.jit(work.arms["reference"])(*wide))
    except jax.errors.JaxRuntimeError:
        host = jax.devices("cpu")[0]
        with jax.default_device(host):
            return jax.device_get(jax.jit(work.arms["reference"])(*jax.device_put(wide, host)))


def _seconds(function: Callable[..., Any], inputs: list[Any], calls: int) -> float:
    """Seconds of one call, of so many in a row."""
    began = time.perf_counter()
    out = None
    for call in range(calls):
        out = function(*inputs[call % len(inputs)])
    jax.block_until_ready(out)
    return (time.perf_counter() - began) / calls


def _in_float32(leaf: Any) -> Any:
    """All that is rounded on the way; numbers of 8 bits are what they are."""
    is_rounded = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize > 1
    return leaf.astype(jnp.float32) if is_rounded else leaf


def _error(found: Any, right: Any) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
    return max(
        float(jnp.abs(_in_float32(mine) - theirs).max() / jnp.maximum(jnp.abs(theirs).max(), 1e-9))
        for mine, theirs in pairs
    )


def ceilings(is_tiny: bool) -> Ceilings:
    """Copies and multiplies what is too large for any cache."""
    side, length = (512, 2**20) if is_tiny else (8192, 2**28)
    vector = jnp.ones(length, jnp.bfloat16)
    matrix = jnp.ones((side, side), jnp.bfloat16)
    copy_s, product_s = _best(jax.jit(lambda a: a + 1), vector), _best(jax.jit(lambda a: a @ a), matrix)
    return Ceilings(2 * vector.nbytes / copy_s, 2 * side**3 / product_s)


def _best(function: Callable[..., Any], argument: Any) -> float:
    function(argument).block_until_ready()
    return min(_seconds(function, [(argument,)], 8) for _ in range(5))


# ---- what is measured


def block_work(name: str, case: block_cases.Case, with_gradient: bool, tiny: bool) -> Work:
    """Training's attention: the clip to itself."""
    b, t, s, n, g, k = case.shape
    static = case.static
    segment = case.arguments()[3]
    mask = np.asarray(block_reference.frame_mask(jnp.asarray(segment), case.window_frames, case.drafts))
    arms: dict[str, Any] = {"reference": functools.partial(block_reference.block_causal_attention, **static)}
    skipped: dict[str, str] = {}
    _add_ours(arms, skipped, "block_causal_attention", case.shapes(), static, tiny)
    dense = jnp.asarray(np.kron(mask, np.ones((s, s), bool)))[:, None]
    for other in ("xla", "cudnn"):
        arms[f"jax.nn {other}, dense mask"] = functools.partial(_jax_attention, implementation=other, mask=dense)
    arms["jax.nn cudnn, token window (another mask)"] = functools.partial(
        _jax_attention, implementation="cudnn", is_causal=True, local_window_size=((case.window_frames + 1) * s - 1, 0)
    )
    _add_installed(arms, skipped, "tokamax", ", dense mask", functools.partial(_tokamax_attention, mask=dense))
    _drop_cudnn(arms, skipped)
    item = jnp.dtype(case.dtype).itemsize
    flops, size = 4.0 * mask.sum() * s * s * n * k, item * b * t * s * k * (2 * n + 2 * g)
    if with_gradient:
        arms = {arm: _with_gradient(function, case) for arm, function in arms.items()}
        flops, size = 3.5 * flops, 3 * size
    return Work(
        "block_causal_attention", name, "fwd+bwd" if with_gradient else "fwd", case.dtype, case.shape,
        functools.partial(_cast_arguments, case), arms, flops, size, skipped,
    )  # fmt: skip


def cached_work(name: str, case: cached_cases.Case, tiny: bool) -> Work:
    """Playing's attention: the frame in flight to the ring."""
    b, f, _, s, n, g, k = case.shape
    static = case.static
    arms: dict[str, Any] = {"reference": functools.partial(cached_reference.cached_attention, **static)}
    skipped: dict[str, str] = {}
    _add_ours(arms, skipped, "cached_attention", case.shapes(), static, tiny)
    jax_cached = functools.partial(_jax_cached, window=case.window_frames, is_per_site=case.is_per_site)
    for other in ("xla", "cudnn"):
        arms[f"jax.nn {other}, dense mask"] = functools.partial(
            jax_cached, attend=functools.partial(_jax_attention, implementation=other)
        )
    tokamax = functools.partial(jax_cached, attend=_tokamax_attention)
    _add_installed(arms, skipped, "tokamax", ", dense mask", tokamax)
    _drop_cudnn(arms, skipped)
    ages = case.arguments()[5]
    seen = int(
        np.asarray(cached_reference.visible(jnp.asarray(ages), jnp.ones((b, f), bool), case.window_frames)).sum()
    )
    item, ring_item = jnp.dtype(case.dtype).itemsize, jnp.dtype(case.ring or case.dtype).itemsize
    meets = 1 if case.is_per_site else s
    return Work(
        "cached_attention", name, "fwd", case.dtype, case.shape, functools.partial(_cast_arguments, case), arms,
        4.0 * seen * s * meets * n * k, s * k * (2 * b * f * n * item + 2 * g * seen * ring_item), skipped,
    )  # fmt: skip


def norm_work(name: str, case: norm_cases.Case, with_gradient: bool, tiny: bool) -> Work:
    """Between two sub-blocks: one reads the stream and the branch and writes the stream and its norm, each once."""
    arms: dict[str, Any] = {"reference": functools.partial(norm_reference.norm_modulate, **case.static)}
    skipped: dict[str, str] = {}
    _add_ours(arms, skipped, "norm_modulate", case.shapes(), case.static, tiny)
    arrays = 4 if case.has_branch else 2
    if with_gradient:
        arms = {arm: _with_gradient(function, case) for arm, function in arms.items()}
        arrays += 6 if case.has_branch else 4
    size = jnp.dtype(case.dtype).itemsize * math.prod(case.shape)
    return Work(
        "norm_modulate", name, "fwd+bwd" if with_gradient else "fwd", case.dtype, case.shape,
        functools.partial(_cast_arguments, case), arms, 0.0, arrays * size, skipped,
    )  # fmt: skip


def _cast_arguments(case: Any, seed: int) -> tuple[Any, ...]:
    return jax.tree.map(
        lambda a: jnp.asarray(a, case.dtype) if np.issubdtype(a.dtype, np.floating) else jnp.asarray(a),
        case.arguments(seed),
    )


def quantized_work(name: str, case: quantized_cases.Case, tiny: bool) -> Work:
    """A linear layer in 8 bits; the arms also get the weight as it was before."""
    m, i, o = case.shape
    arms: dict[str, Any] = {"reference": quantized_reference.quantized_matmul}
    skipped: dict[str, str] = {}
    _add_ours(arms, skipped, "quantized_matmul", case.shapes(), {}, tiny)
    _add_installed(arms, skipped, "qwix", "", _qwix_product)
    arms = {arm: functools.partial(_on_quantized, function) for arm, function in arms.items()}
    arms[f"{case.dtype} product"] = lambda x, _, plain: x @ plain
    item = jnp.dtype(case.dtype).itemsize
    return Work(
        "quantized_matmul", name, "fwd", case.dtype, case.shape,
        lambda seed: (*case.arguments(seed), case.plain(seed)[1]), arms,
        2.0 * m * i * o, item * m * (i + o) + i * o + 4 * o, skipped,
    )  # fmt: skip


def _add_ours(
    arms: dict[str, Any], skipped: dict[str, str], op: str, shapes: tuple[Any, ...], static: dict[str, Any], tiny: bool
) -> None:
    """The kernels that run here: natively, or tiny in an interpreter."""
    for here in platforms(op):
        if not here.has_kernels:
            continue
        arm = f"pallas_kernels {here.name}"
        if not here.takes(compiled_for()) and not tiny:
            continue
        if why := refusal(op, here.name, shapes, static):
            skipped[arm] = why
        else:
            arms[arm] = functools.partial(load(op, here.name), **static, **_interpreted(here.name, tiny))


def _interpreted(name: str, tiny: bool) -> dict[str, Any]:
    if not tiny:
        return {}
    if name == "tpu":
        from jax.experimental.pallas import tpu

        return {"interpret": tpu.InterpretParams()}
    from jax.experimental.pallas import mosaic_gpu

    return {"interpret": mosaic_gpu.InterpretGPUParams()}


def _flat(a: Any) -> Any:
    return a.reshape(a.shape[0], -1, *a.shape[3:])


def _jax_attention(q: Any, k: Any, v: Any, *_: Any, mask: Any = None, **options: Any) -> Any:
    out = jax.nn.dot_product_attention(_flat(q), _flat(k), _flat(v), mask=mask, **options)
    return out.reshape(q.shape)


def _tokamax_attention(q: Any, k: Any, v: Any, *_: Any, mask: Any) -> Any:
    import tokamax  # pyright: ignore[reportMissingImports]  # where it is installed

    return tokamax.dot_product_attention(_flat(q), _flat(k), _flat(v), mask=mask).reshape(q.shape)


def _jax_cached(q, k, v, ring_k, ring_v, ring_age, is_block_seen, sink, ring_scale, *, attend, window, is_per_site):
    del sink
    if is_narrow(ring_k):
        ring_k, ring_v = widened(ring_k, ring_v, ring_scale, k.dtype)
    table = cached_reference.visible(ring_age, is_block_seen, window)
    keys, values = jnp.concatenate([ring_k, k], 1), jnp.concatenate([ring_v, v], 1)
    if is_per_site:  # frames are the sequence and sites more heads: the same arrays, seen otherwise
        sited = (a.reshape(*a.shape[:2], 1, -1, a.shape[-1]) for a in (q, keys, values))
        return attend(*sited, mask=table[:, None]).reshape(q.shape)
    mask = jnp.repeat(jnp.repeat(table, q.shape[2], axis=1), q.shape[2], axis=2)[:, None]
    return attend(q, keys, values, mask=mask)


def _on_quantized(function: Callable[..., Any], x: Any, weight: Any, _plain: Any) -> Any:
    return function(x, weight)


def _qwix_product(x: Any, weight: Any) -> Any:
    import qwix  # pyright: ignore[reportMissingImports]  # where it is installed

    dtype = weight.values.dtype
    rows = qwix.quantize(x, dtype, channelwise_axes=(0,))
    kept = qwix.QArray(weight.values, weight.scale[None], None, dtype)
    return qwix.dot_general(rows, kept, (((1,), (0,)), ((), ()))).astype(x.dtype)


def _with_gradient(function: Callable[..., Any], case: Any) -> Callable[..., Any]:
    shape = case.shapes()[0].shape  # of every output
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)

    def both(*arguments):
        moving, rest = arguments[: case.moving], arguments[case.moving :]
        out, pull = jax.vjp(lambda *moving: function(*moving, *rest), *moving)
        return out, pull(jax.tree.map(lambda a: cotangent.astype(a.dtype), out))

    return both


def _add_installed(
    arms: dict[str, Any], skipped: dict[str, str], package: str, how: str, function: Callable[..., Any]
) -> None:
    if importlib.util.find_spec(package):
        arms[package + how] = function
    else:
        skipped[package + how] = f"{package} is not installed"


def _drop_cudnn(arms: dict[str, Any], skipped: dict[str, str]) -> None:
    if compiled_for().platform in ("gpu", "cuda"):
        return
    for arm in [arm for arm in arms if "cudnn" in arm]:
        del arms[arm]
        skipped[arm] = "cuDNN is for GPUs"


def works(ops: tuple[str, ...], tiny: bool) -> list[Work]:
    """All there is to measure; tiny: the smallest case of each op that every kernel takes."""
    one = "bfloat16"
    blocks = {one: block_cases.SMALL[one]} if tiny else block_cases.LARGE
    cacheds = {one: cached_cases.SMALL[one]} if tiny else cached_cases.LARGE
    norms = {one: norm_cases.SMALL[one]} if tiny else norm_cases.LARGE
    quantizeds = {one: quantized_cases.SMALL[one]} if tiny else quantized_cases.LARGE
    chosen: list[Work] = []
    if "block_causal_attention" in ops:
        chosen += [block_work(*item, gradient, tiny) for item in blocks.items() for gradient in (False, True)]
    if "cached_attention" in ops:
        chosen += [cached_work(*item, tiny) for item in cacheds.items()]
    if "norm_modulate" in ops:
        chosen += [norm_work(*item, gradient, tiny) for item in norms.items() for gradient in (False, True)]
    if "quantized_matmul" in ops:
        chosen += [quantized_work(*item, tiny) for item in quantizeds.items()]
    return chosen


def only(work: Work, arm: str) -> Work:
    """The work with this arm alone, and the reference to check it."""
    arms = {name: function for name, function in work.arms.items() if name in (arm, "reference")}
    return dataclasses.replace(work, arms=arms, skipped={})


# ---- what is said of it


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| op | case (shape, dtype) | pass | arm | median, us | times the reference | error | of the roof |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = {(row.op, row.case, row.kind): row.median_us for row in rows if row.arm == "reference"}
    for row in rows:
        case = f"{row.case} {row.shape} {row.dtype}"
        if row.median_us is None or row.error is None or row.of_roof is None:
            lines.append(f"| {row.op} | {case} | {row.kind} | {row.arm} | {row.note} | | | |")
            continue
        faster = (base[row.op, row.case, row.kind] or 0.0) / row.median_us
        lines.append(
            f"| {row.op} | {case} | {row.kind} | {row.arm} | {row.median_us:.1f} | {faster:.2f} | {row.error:.1e} | "
            f"{100 * row.of_roof:.0f} % |"
        )
    return "\n".join(lines)


def facts(ceiling: Ceilings, tiny: bool) -> dict[str, Any]:
    """Where and with what this was measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": compiled_for().device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "interpreted_at_a_tiny_size": tiny,
        "copy_GB_s": ceiling.bandwidth / 1e9,
        "product_TFLOP_s": ceiling.rate / 1e12,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"what to measure: {', '.join(OPS)}")
    parser.add_argument("--all", action="store_true", help="measure every op")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each arm; the median counts")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    if unknown := set(options.ops) - set(OPS):
        parser.error(f"no op is called {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    if not options.ops and not options.all:
        parser.error(f"name an op ({', '.join(OPS)}), or --all")
    tiny = not any(here.takes(compiled_for()) for here in ACCELERATORS)
    ceiling = ceilings(tiny)
    where = facts(ceiling, tiny)
    print(
        ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in where.items()
        )
    )
    rows: list[Row] = []
    for work in works(OPS if options.all else tuple(options.ops), tiny):
        print(f"{work.op}, {work.case}, {work.kind} ...", file=sys.stderr, flush=True)
        rows += measure(work, ceiling, 1 if tiny else options.rounds)
        if options.json is not None:  # after each work, so that nothing measured is lost
            content = {**where, "rows": [dataclasses.asdict(row) for row in rows]}
            options.json.write_text(json.dumps(content, indent=2) + "\n")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
