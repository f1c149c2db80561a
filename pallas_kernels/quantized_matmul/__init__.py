"""Linear layers in 8 bits: rows rounded on the fly, weights once, products summed exactly (int8) or in float32 (fp8)."""
