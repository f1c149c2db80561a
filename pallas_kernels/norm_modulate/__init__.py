"""A gated branch joined to the residual stream, then its norm shifted and scaled, one row of modulation a frame."""
