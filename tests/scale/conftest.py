"""What the tests of many servers share: the tiny world of the serving tests, in a folder."""

from tests.serving.conftest import browser, world_folder

__all__ = ["browser", "world_folder"]
