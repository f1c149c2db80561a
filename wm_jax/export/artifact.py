"""A world made ready for one accelerator: one folder that `serve.py` starts from without tracing the model.

    manifest.json            what it is for, which JAX made it, the size and checksum of every other file
    config.json, weights-*, prompts.npz      the world itself
    start.bin, put.bin, take.bin, step.bin   the programs of `Playing`, exported (StableHLO) for the target's platform

An exported program is compiled where it runs; the compile cache keeps that for the next start.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from wm_jax import checkpoint
from wm_jax.checkpoint.folder import replacing
from wm_jax.export.programs import Program, playing
from wm_jax.export.targets import TARGETS, Target
from wm_jax.types import Prompt
from wm_jax.world import load, load_prompts
from wm_jax.world.world import world_folder as files_of

FORMAT = 3
MANIFEST = "manifest.json"
WORLD_FILES = ("config.json", "weights*.safetensors", "prompts.npz")
NEEDS_GIVEN_NOISE = ("neuron",)
"""Platforms whose compiler has no generator of the default kind: the noise comes in as arrays."""


class ArtifactError(ValueError):
    """The folder is no artifact, is damaged, or is not for this machine; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
      target: Name of the target it is for.
      slots: Sessions in its batch.
      prompt: Frames of a prompt; 0 where the world has none.
      is_noise_given: Whether the programs take their noise as arrays.
      jax: The version of JAX that made it, and the only one that may run it.
      files: Name -> (bytes, sha256).
    """

    target: str
    slots: int
    prompt: int
    is_noise_given: bool
    jax: str
    files: dict[str, tuple[int, str]]
    format: int = FORMAT


def is_artifact(folder: Path) -> bool:
    """Whether the folder says that it is one."""
    return (folder / MANIFEST).is_file()


def write(world_folder: Path, target: Target, slots: int, out: Path) -> Manifest:
    """Exports a world's programs for a target; the folder appears whole or not at all.

    Raises:
      ArtifactError: the folder is there already and is no artifact, or the programs are not for this target.
      ConfigError, CheckpointError: the world cannot be read.
    """
    if out.exists() and not is_artifact(out):
        raise ArtifactError(f"{out} is there already and is no artifact; name another folder by --out")
    world, _ = load(world_folder)
    prompt = one_prompt(load_prompts(world_folder))
    is_noise_given = target.platform in NEEDS_GIVEN_NOISE
    blobs = {program.name: _export(program, target) for program in playing(world, slots, prompt, is_noise_given)}
    with replacing(out, "the artifact") as made:
        for pattern in WORLD_FILES:
            for path in sorted(files_of(world_folder).glob(pattern)):
                shutil.copyfile(path, made / path.name)
        for name, blob in blobs.items():
            (made / f"{name}.bin").write_bytes(blob)
        manifest = Manifest(
            target=target.name,
            slots=slots,
            prompt=0 if prompt.frames is None else prompt.frames.shape[1],
            is_noise_given=is_noise_given,
            jax=jax.__version__,
            files={path.name: _fingerprint(path) for path in sorted(made.iterdir())},
        )
        (made / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
    return manifest


def one_prompt(prompts: Prompt) -> Prompt:
    """The first of a world's prompts as a batch of one: the shape that the programs are made for."""
    return Prompt() if prompts.frames is None else jax.tree.map(lambda leaf: leaf[:1], prompts)


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact that was found whole and right for this machine."""

    folder: Path
    manifest: Manifest

    def function(self, program: Program) -> Callable[..., Any]:
        """The program as it was exported: jitted, of the same arguments and results, never traced."""
        exported = jax.export.deserialize(bytearray((self.folder / f"{program.name}.bin").read_bytes()))
        tree = jax.tree.structure(program.results)

        def call(*arguments: Any) -> Any:
            return jax.tree.unflatten(tree, exported.call(*jax.tree.leaves(arguments)))

        return jax.jit(call, donate_argnums=program.donated)


def read(folder: Path) -> Artifact:
    """The artifact in a folder, checked against its manifest and against this machine.

    Raises:
      ArtifactError: no artifact, of another format or JAX, for another device, or with a file that is missing,
        of another size or of other content; names it.
    """
    checkpoint.scan(folder)
    manifest = _read_manifest(folder)
    again = f"make it again: python -m wm_jax.export <world> --target {manifest.target} --out {folder}"
    if manifest.jax != jax.__version__:
        raise ArtifactError(f"{folder} was made with JAX {manifest.jax}, here is JAX {jax.__version__}; {again}")
    for name, (size, checksum) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{folder}: {name} is missing; {again}")
        if path.stat().st_size != size or _fingerprint(path)[1] != checksum:
            raise ArtifactError(f"{folder}: {name} is damaged ({path.stat().st_size} of {size} bytes); {again}")
    device = jax.devices()[0]
    target = TARGETS[manifest.target]
    if not target.fits(device.platform, device.device_kind):
        raise ArtifactError(
            f"{folder} is for {target.name} ({target.platform}), this process computes on {device.device_kind} "
            f"({device.platform}); export the world for that, or choose the device by --device"
        )
    return Artifact(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        found = Manifest(**{**content, "files": {name: tuple(of) for name, of in content["files"].items()}})
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no {MANIFEST}: python -m wm_jax.export makes such a folder") from None
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is no manifest of an artifact: {error}") from None
    if found.format != FORMAT:
        raise ArtifactError(f"{path} is of format {found.format!r}, this program reads {FORMAT}")
    if found.target not in TARGETS:
        raise ArtifactError(f"{path} names the target {found.target!r}; there are {', '.join(TARGETS)}")
    return found


def _export(program: Program, target: Target) -> bytes:
    leaves, tree = jax.tree.flatten(program.shapes)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(program.function(*jax.tree.unflatten(tree, leaves)))

    if target.platform == "neuron":
        from wm_jax.export.neuron import export_for_neuron, lint  # a server that only reads needs no parser of programs

        exported = export_for_neuron(flat, *leaves)
        if fatal := [finding for finding in lint(exported) if finding.is_fatal]:
            raise ArtifactError(f"{program.name} is not for {target.name}: {fatal[0].rule}: {fatal[0].what}")
    else:
        with for_device(target):
            exported = jax.export.export(jax.jit(flat), platforms=[target.platform])(*leaves)
    return bytes(exported.serialize())


@contextlib.contextmanager
def for_device(target: Target) -> Iterator[None]:
    """What is traced inside chooses its kernels for this device, which is not here."""
    if not target.kinds:
        yield
        return
    device = AbstractDevice(target.kinds[0], 1, target.backend)
    mesh = AbstractMesh((1,), ("_",), (AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        yield


def _fingerprint(path: Path) -> tuple[int, str]:
    return path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
