"""How many replicas there should be: enough slots for those who play, those who wait and the next ones, on servers that keep up."""

import math
from collections.abc import Sequence
from typing import Any

from wm_jax.scale.directory import Replica

ASK_S = 1.0


def wanted(replicas: Sequence[Replica], target: int, spare_slots: int) -> int:
    """How many replicas there should be, limits apart.

    One fewer at a time, and only where those who play on it would find a slot on the others: they are asked to go there.
    None goes while a rollout is made, which would end with it; none comes for one either.

    Args:
      replicas: Those that report.
      target: How many there are to be now.
      spare_slots: Free slots for the next players.
    """
    loads = [known.beat.load for known in replicas if not known.beat.load.is_draining]
    if len(loads) < target:
        return target  # some are starting: what they bring is not known yet
    taken = sum(load.slots - load.free_slots + load.waiting for load in loads)
    slots = max((load.slots for load in loads), default=1)
    needed = math.ceil((taken + spare_slots) / slots)
    if loads and all(known.is_overloaded for known in replicas if not known.beat.load.is_draining):
        needed = max(needed, target + 1)
    return max(needed, target if any(load.scripts for load in loads) else target - 1)


class SlotPolicy:
    """`wanted` as Ray Serve's controller asks for it, which keeps to the limits and waits before it acts.

    The controller cannot choose who goes when there are too many, so whoever goes drains first: see `Replica.stop`.
    """

    def __init__(self, spare_slots: int, lease_s: float) -> None:
        self._spare_slots = spare_slots
        self._lease_s = lease_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and nothing to remember."""
        import ray
        from ray.exceptions import RayError

        from wm_jax.scale.cluster import directory

        target: int = context.target_num_replicas
        try:
            known = ray.get(directory(self._lease_s).replicas.remote(), timeout=ASK_S)
        except RayError:
            return target, {}  # what is not known changes nothing
        return wanted(known, target, self._spare_slots), {}
