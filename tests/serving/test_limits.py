"""Rates, and who may come."""

from types import SimpleNamespace

import pytest

from wm_jax.serving.config import ServeConfig
from wm_jax.serving.limits import TokenBucket, is_allowed_origin


def test_a_bucket_allows_its_burst_then_its_rate(monkeypatch):
    now = [5.0]
    monkeypatch.setattr("wm_jax.serving.limits.time", SimpleNamespace(monotonic=lambda: now[0]))
    bucket = TokenBucket(rate=50.0, burst=3)
    assert [bucket.take() for _ in range(3)] == [0.0, 0.0, 0.0]
    wait = bucket.take()
    assert wait == pytest.approx(0.02)
    now[0] += wait / 2
    assert bucket.take() == pytest.approx(wait / 2)
    now[0] += wait
    assert bucket.take() == 0.0


@pytest.mark.parametrize(
    ("origin", "host", "is_allowed"),
    [
        (None, "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("http://127.0.0.1:9999", "127.0.0.1:8000", False),
        ("https://evil.example", "127.0.0.1:8000", False),
        ("http://evil.example:8000", "evil.example:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("https://friend.example", "127.0.0.1:8000", True),
    ],
)
def test_only_our_own_page_and_invited_ones_may_act(origin, host, is_allowed):
    config = ServeConfig(allow_origins=("https://friend.example",))
    assert is_allowed_origin(origin, host, config) == is_allowed


def test_a_public_server_trusts_its_own_name():
    config = ServeConfig(host="0.0.0.0", auth="secret")
    assert is_allowed_origin("https://play.example", "play.example", config)
    assert not is_allowed_origin("https://other.example", "play.example", config)
