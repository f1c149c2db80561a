"""Saves and restores trees of arrays with their config beside them, whole or not at all, without a pickle.

Never knows what the trees mean. Imports config.
"""

from wm_jax.checkpoint.folder import scan, writing
from wm_jax.checkpoint.train_state import (
    DONE_FILE,
    Saved,
    checkpoints,
    read_saved,
    restore_state,
    save_state,
    versions,
)
from wm_jax.checkpoint.tree import CheckpointError, check_tree, flatten_tree, nest_tree
from wm_jax.checkpoint.world_files import load_prompts, load_world_files, save_world

__all__ = [
    "DONE_FILE",
    "CheckpointError",
    "Saved",
    "check_tree",
    "checkpoints",
    "flatten_tree",
    "load_prompts",
    "load_world_files",
    "nest_tree",
    "read_saved",
    "restore_state",
    "save_state",
    "save_world",
    "scan",
    "versions",
    "writing",
]
