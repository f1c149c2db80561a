"""A server is safe by default, and refuses to be unsafe."""

import pytest

from wm_jax.serving.config import ServeConfig, ServeConfigError, compile_cache_dir, is_loopback


def test_by_default_only_this_machine_can_reach_the_server():
    assert is_loopback(ServeConfig().host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_public_address_needs_a_secret(host):
    with pytest.raises(ServeConfigError, match="--auth"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, auth="secret").host == host


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 0}, {"quality": 0}, {"quality": 101}, {"credit_window": 0}, {"port": 70_000}, {"port": -1},
        {"messages_per_s": 0.0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ServeConfigError, match=next(iter(wrong))):
        ServeConfig(**wrong)


def test_compiled_worlds_are_kept_in_the_users_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache_dir(ServeConfig()).is_relative_to(tmp_path)
    assert compile_cache_dir(ServeConfig(cache_dir="/elsewhere")).as_posix() == "/elsewhere"
