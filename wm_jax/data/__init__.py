"""Recordings on disk and the clips that training reads from them: record, episode folder, loader, inspect.

Never trains, never guesses: a broken recording is refused by name.
Imports envs and types.
"""

from wm_jax.data.episode import Episode, EpisodeError, EpisodeFolder

__all__ = ["Episode", "EpisodeError", "EpisodeFolder"]
