"""Training and prefill: free inside a frame, causal between frames, windowed."""
