"""Layers without opinions: weights in, arrays out.

Never holds a cache, a random key or a mode flag. Imports pallas_kernels and types.
"""
