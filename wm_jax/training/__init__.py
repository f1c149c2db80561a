"""Learning: clips to better weights, by one loop; a stage is a loss.

Never serves. Imports eval, world, data and everything below.
"""
