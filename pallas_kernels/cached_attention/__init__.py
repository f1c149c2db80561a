"""Playing: the frames in flight against the ring of past frames."""
