"""The update as compilers meet it: what Trainium refuses is not in it, and the state is donated."""

import jax
import pytest

from wm_jax.export.neuron import export_for_neuron, lint
from wm_jax.training.config import load_config
from wm_jax.training.program import train_program


@pytest.mark.parametrize("stage", ["autoencoder", "dynamics"])
def test_trainium_has_nothing_against_an_update(stage: str):
    program = train_program(load_config(f"configs/toy/{stage}.py"))
    exported = export_for_neuron(program.function, *program.shapes)
    assert [finding for finding in lint(exported) if finding.is_fatal] == []
    donated = jax.tree.leaves(program.function.lower(*program.shapes).args_info[0][0])
    assert len(donated) == len(jax.tree.leaves(program.shapes[0])) and all(leaf.donated for leaf in donated)
