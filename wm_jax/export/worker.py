"""One compilation in a process of its own, for `report`: a compiler that aborts takes nobody with it."""

import json
import sys

if __name__ == "__main__":
    from wm_jax.export.report import work

    world, target, program, slots = sys.argv[1:]
    print(json.dumps(work(world, target, program, int(slots))))
