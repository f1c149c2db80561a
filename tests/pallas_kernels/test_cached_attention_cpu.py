"""cached_attention as a CPU computes it, site by site: the reference's numbers and gradients, and nothing it cannot do is given to it.

Tolerances as in test_against_reference.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import cached_attention
from pallas_kernels.cached_attention import cpu, reference
from pallas_kernels.cached_attention.cases import SMALL, Case

TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
CASES = {
    "one frame": Case((1, 1, 5, 7, 2, 2, 16), window_frames=5, written=(5,), is_per_site=True),
    "rows at different times": Case((3, 1, 6, 3, 2, 1, 8), window_frames=4, written=(6, 1, 0), is_per_site=True),
    "two frames in flight, heads that share": Case((2, 2, 9, 3, 6, 2, 32), 5, written=(9, 3), is_per_site=True),
    "a draft nobody sees": Case((1, 2, 4, 3, 2, 1, 16), 4, written=(1,), is_block_seen=False, is_per_site=True),
    "bfloat16": dataclasses.replace(SMALL["site by site"], sinks=0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_and_gradients_are_those_of_the_reference(name):
    case = CASES[name]
    arguments = [jnp.asarray(a, case.dtype if a.dtype == np.float32 else a.dtype) for a in case.arguments()[:7]]

    def run(op, *moving):
        return op(*moving, *arguments[5:], None, None, **case.static).astype(jnp.float32)

    answers = []
    for op in (cpu.cached_attention, reference.cached_attention):
        answer, pull = jax.vjp(functools.partial(run, op), *arguments[:5])
        answers.append((answer, *pull(jnp.cos(answer))))
    for found, right in zip(*answers, strict=True):
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(right, np.float32), atol=2 * TOLERANCE[case.dtype]
        )


def test_a_cpu_takes_it_and_makes_no_product_of_matrices_of_it():
    case = CASES["one frame"]
    traced = jax.make_jaxpr(functools.partial(cached_attention, **case.static))(*case.arguments())
    assert "optimization_barrier" in str(traced)
    compiled = jax.jit(functools.partial(cached_attention, **case.static)).lower(*case.arguments()).compile()
    assert " dot(" not in str(compiled.as_text())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(is_per_site=False), "site by site"),
        (dict(sinks=1), "no sinks"),
        (dict(ring="int8"), "no ring of 8 bits"),
        (dict(shape=(1, 5, 5, 7, 2, 2, 16)), "5 frames are in flight, it takes at most 4"),
        (dict(shape=(1, 1, 5, 7, 2, 2, 24)), "heads have 24 channels"),
    ],
)
def test_what_it_cannot_do_is_left_to_the_reference(change, why):
    case = dataclasses.replace(CASES["one frame"], **change)
    run = functools.partial(cached_attention, *case.arguments(), **case.static)
    np.testing.assert_array_equal(run(), run(implementation="reference"))
    with pytest.raises(ValueError, match=why):
        run(implementation="cpu")
