"""Which world is served, and on which device: a folder of a world, of a run, of an export, or a published name."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_jax.ports import published
from wm_jax.ports.published import Published
from wm_jax.types import Params, Prompt
from wm_jax.world import Playable

if TYPE_CHECKING:
    from wm_jax.export.artifact import Artifact


@dataclasses.dataclass(frozen=True)
class Choice:
    """A world as it was asked for; can be sent to another machine, which opens it there.

    Attributes:
      world: Folder, or a published world's name.
      device: Compute on this platform, or fail; None: the best one that JAX finds.
      prompt: An image to begin with.
      published: Weights and speed of a published world.
    """

    world: Path
    device: str | None = None
    prompt: Path | None = None
    published: Published = dataclasses.field(default_factory=Published)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A world that can be served: weights, the frames it begins with, and its export where that is what was chosen."""

    world: Playable[Any]
    params: Params
    prompts: Prompt
    artifact: "Artifact | None"


def open_choice(choice: Choice) -> Opened:
    """The world, on its device.

    Raises:
      ValueError: there is no such world or device, the world cannot be read, or what was asked for is not for its kind.
    """
    from wm_jax.export import artifact

    if choice.device is not None:
        use_device(choice.device)
    made = artifact.read(choice.world) if artifact.is_artifact(choice.world) else None
    return Opened(*open_world(choice), made)


def open_world(choice: Choice) -> tuple[Playable[Any], Params, Prompt]:
    """The world that was named, its weights, and the frames it begins with.

    Raises:
      ValueError: there is no such world, it cannot be read, or what was asked for is not for a world of its kind.
    """
    from wm_jax.world import load, load_prompts

    name = choice.world.as_posix()
    if name in published.NAMES and (choice.published != Published() or not choice.world.exists()):
        world, params = published.load(name, choice.published)
        prompts = Prompt()
    elif choice.published != Published():
        raise ValueError(
            f"{choice.world}: --weights, --random-weights, --steps, --dtype, --solver and --eight-bits are for "
            f"{', '.join(published.NAMES)}"
        )
    else:
        world, params = load(choice.world)
        prompts = load_prompts(choice.world)
    return world, params, prompts if choice.prompt is None else read_prompt(choice.prompt, world)


def read_prompt(path: Path, world: Playable[Any]) -> Prompt:
    """One image as the prompt.

    Raises:
      ValueError: no picture of the world's size, or a world that needs more than an image.
    """
    from wm_jax.serving.codec import decode_image

    if not world.takes_image:
        raise ValueError(f"--prompt: world {world.config.name!r} does not go on from a single image")
    return Prompt(decode_image(path.read_bytes(), world.config.image)[None, None])


def use_device(platform: str) -> None:
    """Makes JAX compute there.

    Raises:
      ValueError: JAX finds no such device; says why.
    """
    import jax

    jax.config.update("jax_platforms", platform)
    try:
        jax.devices()
    except RuntimeError as error:
        raise ValueError(
            f"--device {platform}: JAX finds none here ({error}); docs/accelerators.md says what to install"
        ) from None


def check_slots(opened: Opened, slots: int) -> None:
    """Passes where the world can be served to this many.

    Raises:
      ValueError: it is an export for another number.
    """
    made = opened.artifact
    if made is not None and made.manifest.slots != slots:
        count = made.manifest.slots
        raise ValueError(f"{made.folder} was made for {count} slots, not {slots}: serve it with --slots {count}")
