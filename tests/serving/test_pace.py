"""The media clock: on time where it can be, evenly slower where it cannot, and never in a hurry."""

import itertools

import pytest

from wm_jax.serving.pace import SHARES, STEADY, WINDOW, Crowd, Pace


def run(pace: Pace, seconds: float, frame_s: float, now: float = 100.0) -> tuple[list[float], float]:
    """When it ticks on a device that takes this long for a frame and does one at a time; and when that was over."""
    ticks, end = [], now + seconds
    while now < end:
        if pace.is_tick(now, frame_s):
            ticks.append(now)
            now += frame_s
        else:
            now = pace.due
    return ticks, now


def test_a_fast_device_ticks_on_time_and_misses_nothing():
    pace = Pace(30.0)
    ticks, _ = run(pace, 10.0, 0.01)
    assert len(ticks) == pytest.approx(300, abs=1) and pace.missed == 0 and pace.fps == 30.0
    assert {round(later - sooner, 6) for sooner, later in itertools.pairwise(ticks)} == {round(1 / 30, 6)}


@pytest.mark.parametrize(("frame_s", "fps"), [(0.04, 22.5), (0.06, 15.0), (0.2, 3.75)])
def test_a_slow_one_runs_evenly_at_a_rate_it_keeps(frame_s, fps):
    pace = Pace(30.0)
    _, now = run(pace, 60.0, frame_s)
    assert pace.fps == fps
    before = pace.missed
    ticks, _ = run(pace, 20.0, frame_s, now)
    gaps = [later - sooner for sooner, later in itertools.pairwise(ticks)]
    assert pace.missed == before and max(gaps) - min(gaps) < 1e-6 and gaps[0] == pytest.approx(1 / fps)


def test_it_runs_at_full_rate_again_once_there_is_room():
    pace = Pace(30.0)
    _, now = run(pace, 30.0, 0.12)
    assert pace.fps < 10
    run(pace, 120.0, 0.01, now)
    assert pace.fps == 30.0


def test_one_hiccup_changes_nothing_and_is_not_made_up_for():
    pace = Pace(30.0)
    _, now = run(pace, 1.0, 0.01)
    _, now = run(pace, 0.05, 0.07, now)
    ticks, _ = run(pace, 3.0, 0.01, now)
    assert pace.missed == 1 and pace.fps == 30.0 and len(ticks) <= 91
    assert WINDOW < 100 and list(SHARES) == sorted(SHARES, reverse=True)


def test_after_a_rest_the_first_frame_comes_at_once_and_nothing_was_missed():
    pace = Pace(30.0)
    _, now = run(pace, 1.0, 0.01)
    pace.rest()
    assert pace.is_tick(now + 1000.0, 0.01) and pace.missed == 0


def test_other_work_stays_away_from_ticks_that_had_to_wait_for_it():
    pace = Pace(1.0)
    assert pace.is_tick(100.0, 0.0) and pace.has_room(100.0, 0.9) and not pace.has_room(100.2, 0.9)
    pace.learn(0.5)
    assert pace.spare_s == 0.0, "it waited for the tick before it"
    for waited in (0.01, 0.02):
        pace.learn(None)
        pace.learn(waited)
    assert pace.spare_s == pytest.approx(0.03) and not pace.has_room(100.0, 0.98) and pace.has_room(100.0, 0.96)
    for _ in range(200):
        pace.learn(0.0)
    assert pace.has_room(100.0, 0.98), "it is forgotten"
    pace.learn(None)
    pace.learn(7.0)
    assert pace.spare_s == 1.0, "never more than a frame"


def test_a_batch_grows_at_once_and_shrinks_after_a_while():
    crowd = Crowd()
    assert [crowd.count(rows) for rows in (1, 3, 1)] == [1, 3, 3]
    assert {crowd.count(2) for _ in range(STEADY - 2)} == {3} and crowd.count(3) == 3
    assert [crowd.count(2) for _ in range(STEADY + 1)] == [3] * STEADY + [2]
    assert [crowd.count(rows) for rows in (3, *[2] * STEADY, 1)] == [3] * (STEADY + 1) + [2], (
        "as many as any of them needed"
    )
