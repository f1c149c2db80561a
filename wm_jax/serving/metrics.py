"""What a server tells Prometheus, at `GET /metrics`."""

from collections import Counter as Tally
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from wm_jax.serving.batcher import Batcher
    from wm_jax.serving.lobby import Lobby

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.067, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)


class Times:
    """How long things take, as histograms; any thread may observe.

    Attributes:
      step: From launch to pixels on the host, a frame of the whole batch.
      action_to_frame: From an event's arrival to the first frame that obeys it, encoded.
      first_frame: From the request for a session to its first frame, encoded.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.step = self._histogram("wm_step_seconds", "From launch to pixels on the host")
        self.action_to_frame = self._histogram("wm_action_to_frame_seconds", "From an event to its first frame")
        self.first_frame = self._histogram("wm_ttff_seconds", "From the request for a session to its first frame")

    def _histogram(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, buckets=SECONDS, registry=self.registry)


class Standing(Collector):
    """How things stand when somebody asks."""

    def __init__(self, batcher: "Batcher", lobby: "Lobby") -> None:
        self._batcher = batcher
        self._lobby = lobby

    def collect(self) -> Iterable[Metric]:
        batcher, pulse, pace = self._batcher, self._batcher.pulse, self._batcher.pace
        sessions = GaugeMetricFamily("wm_sessions", "Sessions by state", labels=["state"])
        for state, count in Tally(self._lobby.states()).items():
            sessions.add_metric([state], count)
        yield sessions
        yield GaugeMetricFamily("wm_slots_free", "Slots nobody sits in", batcher.free_slots)
        yield GaugeMetricFamily("wm_fps", "Frames a second of the media clock now", pace.fps)
        occupancy = pulse.rows / (pulse.frames * batcher.engine.slots) if pulse.frames else 0.0
        yield GaugeMetricFamily("wm_batch_occupancy", "Share of the rows of a step that were wanted, so far", occupancy)
        yield CounterMetricFamily("wm_steps", "Calls of the compiled step", pulse.frames)
        yield CounterMetricFamily("wm_frames", "Frames of all sessions", pulse.rows)
        yield CounterMetricFamily("wm_deadline_miss", "Ticks that were skipped", pace.missed)
        yield CounterMetricFamily("wm_frames_dropped", "Frames that slow clients lost", self._lobby.dropped)
        yield CounterMetricFamily("wm_step_failures", "Frames that failed and were made again", pulse.failures)
        yield CounterMetricFamily("wm_recompile", "Compilations since the start", batcher.engine.recompilations)
        for name, value in (jax.local_devices()[0].memory_stats() or {}).items():
            if name in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit"):
                yield GaugeMetricFamily(f"wm_device_{name}", "As the device tells it", value)


def text(times: Times, standing: Standing) -> bytes:
    """All of it, in the format that Prometheus reads; also the memory, files and processor time of this process (Linux)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(standing)
    return generate_latest(times.registry) + generate_latest(registry)
