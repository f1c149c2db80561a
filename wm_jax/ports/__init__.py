"""Published worlds of others behind our interface: their weights under their names, their numbers, our step.

Never trains, never serves; nothing of theirs but names and geometry. Imports world, the rooms below it, and pallas_kernels.
"""
