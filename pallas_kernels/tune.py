"""Finds the best block sizes on this device: python -m pallas_kernels.tune --all

Times every way to cut each op's large cases here and writes the best of them into the op's tuned.json under this kind of
device; what is known of other devices stays. Of an op that XLA fuses well by itself nothing is written where XLA is as fast.
Needs an accelerator that the kernels are for.
"""

import argparse
import itertools
import math
import sys

import jax

from pallas_kernels import bench
from pallas_kernels.block_sizes import LEFT_TO_XLA, Sizes, trying, write
from pallas_kernels.implementation import PLATFORMS, compiled_for

FLASH = {
    "tpu": [Sizes(rows=rows) for rows in (128, 256, 512, 1024)],
    "gpu": [Sizes(workers=workers, stages=stages) for workers, stages in itertools.product((1, 2, 3), (2, 3, 4))],
}
ROWS = {
    "tpu": [Sizes(rows=rows) for rows in (32, 64, 128, 256)],
    "gpu": [Sizes(rows=rows) for rows in (2, 4, 8, 16, 32)],
}
WAYS = {"block_causal_attention": FLASH, "cached_attention": FLASH, "norm_modulate": ROWS}


def tune(op: str, name: str, rounds: int) -> Sizes | None:
    """The sizes whose times over all works of the op have the smallest product; None where the op is left to XLA.

    Raises:
      ValueError: no way to cut it compiles here.
    """
    ceiling, scores, of_xla = bench.ceilings(is_tiny=False), dict[Sizes, float](), math.inf
    for sizes in WAYS[op][name]:
        jax.clear_caches()
        with trying(sizes):
            rows = [
                row
                for work in bench.works((op,), tiny=False)
                for row in bench.measure(bench.only(work, f"pallas_kernels {name}"), ceiling, rounds)
            ]
        xla, ours = ([row for row in rows if (row.arm == "reference") is is_xla] for is_xla in (True, False))
        times = [row.median_us for row in ours if row.median_us is not None]
        print(f"{op} {sizes}: {', '.join(f'{time:.0f} us' for time in times) or ours[0].note}", flush=True)
        of_xla = min(of_xla, math.prod(row.median_us or math.inf for row in xla))
        if len(times) == len(ours):
            scores[sizes] = math.prod(times)
    if not scores:
        raise ValueError(f"no block sizes of {op} compile on {compiled_for().device_kind}")
    best = min(scores, key=lambda sizes: scores[sizes])
    return None if op in LEFT_TO_XLA and scores[best] >= of_xla else best


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
    here = [platform.name for platform in PLATFORMS if platform.takes(device)]
    if not here:
        kinds = ", ".join(platform.name for platform in PLATFORMS)
        parser.error(f"this machine computes on {device.device_kind}; tuning needs a device of {kinds}")
    for op in bench.OPS if options.all else options.ops:
        best = tune(op, here[0], options.rounds)
        if best is None:
            print(f"{op}: XLA is as fast without our kernel, nothing written")
            continue
        print(f"{op}: {best}, written to {write(op, device.device_kind, best)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
