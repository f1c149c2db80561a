"""Finds the best block sizes on this device: python -m pallas_kernels.tune --all

Times every way to cut each op's large cases here and writes the best of them into the op's tuned.json under this kind of
device; what is known of other devices stays. An op that `auto` leaves to XLA until it was measured is written only if it is
faster. Needs an accelerator that the kernels are for.
"""

import argparse
import itertools
import math
import sys

import jax

from pallas_kernels import bench
from pallas_kernels.block_sizes import Sizes, kind, trying, write
from pallas_kernels.implementation import ACCELERATORS, compiled_for, needs_measurement, platforms

FLASH = {
    "tpu": [Sizes(rows=rows) for rows in (128, 256, 512, 1024)],
    "gpu": [Sizes(workers=workers, stages=stages) for workers, stages in itertools.product((1, 2, 3), (2, 3, 4))],
}
ROWS = {
    "tpu": [Sizes(rows=rows) for rows in (32, 64, 128, 256)],
    "gpu": [Sizes(rows=rows) for rows in (2, 4, 8, 16, 32)],
}
WAYS = {"block_causal_attention": FLASH, "cached_attention": FLASH, "norm_modulate": ROWS, "quantized_matmul": FLASH}


def tune(op: str, name: str, rounds: int) -> Sizes | None:
    """The sizes whose times over all works of the op, each over the reference's, have the smallest product.

    None where the op must be measured before `auto` takes it, and the reference is faster.

    Raises:
      ValueError: no way to cut it compiles here.
    """
    ceiling, scores, arm = bench.ceilings(is_tiny=False), dict[Sizes, float](), f"pallas_kernels {name}"
    for sizes in WAYS[op].get(name, [Sizes()]):
        jax.clear_caches()
        with trying(sizes):
            rows = [
                row
                for work in bench.works((op,), tiny=False)
                if arm in work.arms
                for row in bench.measure(bench.only(work, arm), ceiling, rounds)
            ]
        ours, theirs = ([row for row in rows if row.arm == who] for who in (arm, "reference"))
        print(f"{op} {sizes}: {_told(ours)}; the reference: {_told(theirs)}", flush=True)
        if rows and None not in [row.median_us for row in rows]:
            scores[sizes] = _product(ours) / _product(theirs)
    if not scores:
        raise ValueError(f"no block sizes of {op} compile on {compiled_for().device_kind}")
    best = min(scores, key=lambda sizes: scores[sizes])
    return None if needs_measurement(op, name) and scores[best] >= 1.0 else best


def _told(rows: list[bench.Row]) -> str:
    return ", ".join(row.note if row.median_us is None else f"{row.median_us:.0f} us" for row in rows)


def _product(rows: list[bench.Row]) -> float:
    return math.prod(row.median_us for row in rows if row.median_us is not None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"what to tune: {', '.join(bench.OPS)}")
    parser.add_argument("--all", action="store_true", help="tune every op")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each way; the median counts")
    options = parser.parse_args(arguments)
    if unknown := set(options.ops) - set(bench.OPS):
        parser.error(f"no op is called {', '.join(sorted(unknown))}; there are {', '.join(bench.OPS)}")
    if not options.ops and not options.all:
        parser.error(f"name an op ({', '.join(bench.OPS)}), or --all")
    device = compiled_for()
    here = [platform.name for platform in ACCELERATORS if platform.takes(device)]
    if not here:
        kinds = ", ".join(platform.name for platform in ACCELERATORS)
        parser.error(f"this machine computes on {device.device_kind}; tuning needs a device of {kinds}")
    for op in bench.OPS if options.all else options.ops:
        if here[0] not in [platform.name for platform in platforms(op)]:
            print(f"{op}: there is no kernel for {here[0]}, it stays with XLA")
        elif best := tune(op, here[0], options.rounds):
            print(f"{op}: {best}, written to {write(op, kind(), best)}")
        else:
            print(f"{op}: XLA is faster here, nothing is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
