"""A stage is a loss, not a script: `loss(world, params, slow, batch, key, step, carry) -> loss, (metrics, carry)`.

Never touches optimizers, files or loops. Imports world and the rooms below.
"""
