"""WorldModel: the modules of a world, as containers of weights."""

from flax import nnx

from wm_jax.autoencoder import Autoencoder
from wm_jax.conditioning import Embedder
from wm_jax.dynamics import Dynamics
from wm_jax.world.config import WorldConfig


class WorldModel(nnx.Module):
    """The modules of a world: containers of weights; `World` splits and joins them."""

    def __init__(self, config: WorldConfig, rngs: nnx.Rngs):
        self.autoencoder = Autoencoder(config.autoencoder, rngs)
        self.embedder = Embedder(config.conditioning, config.dynamics.width, rngs)
        self.dynamics = Dynamics(config.dynamics, config.grid, config.autoencoder.channels, rngs)
