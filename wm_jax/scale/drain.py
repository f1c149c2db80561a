"""Lets the players of a machine go before it is switched off: python -m wm_jax.scale.drain"""

import dataclasses
import sys
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from wm_jax.scale import cluster
from wm_jax.scale.config import ScaleError


@dataclasses.dataclass(frozen=True)
class DrainArgs:
    """Whom to let go.

    Attributes:
      target: A machine by its address in the cluster, or one replica by its name; None: this machine.
      address: The Ray cluster.
      patience_s: Seconds until it gives up.
    """

    target: Annotated[str | None, tyro.conf.Positional] = None
    address: str = "auto"
    patience_s: float = 60.0


def main() -> None:
    console = Console()
    args = tyro.cli(DrainArgs, description=__doc__)
    try:
        cluster.require_ray()
        gone = cluster.drain(args.target, args.address, args.patience_s)
    except (ScaleError, ConnectionError, TimeoutError, ValueError) as error:
        console.print(f"[bold red]error[/]  {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    console.print(f"let go: {', '.join(gone) or 'nobody was there'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
