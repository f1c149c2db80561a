"""How good is a world? Held-out clips in; one table, one picture of curves and one film out.

Never trains a world and never changes one; what it measures, it measures by the step that is played.
Imports world, data, envs and types.
"""
