"""What the tests of many servers share: the tiny world of the serving tests, in a folder."""

from tests.serving.conftest import free_port, world_folder

__all__ = ["free_port", "world_folder"]
