"""The log of a session and the file it becomes: nothing is lost, nothing is there twice, and nothing grows without end."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

import wm_jax as wm
from tests.serving.conftest import tiny_prompts
from wm_jax.serving import recording
from wm_jax.serving.events import Chapter, EventLog, Events
from wm_jax.serving.history import History, Memory, Opening

Past = tuple[Any, ...]


def pasts(events: Events) -> dict[int, Past]:
    """What led to each frame: how it began, then what was held; the memory of a state is what led to it."""
    before: dict[int, Past] = {}
    after: dict[int, Past] = {}
    past: Past = ()
    for piece in events.pieces(3):
        if piece.opening is not None:
            opening = piece.opening
            known = (opening.seed,) if opening.memory is None else opening.memory.state
            past = known if opening.back_to is None else before[opening.back_to]
        for frame, row in enumerate(piece.rows, piece.first):
            before[frame] = past
            past = after[frame] = (*past, row.keys.tolist(), row.mouse)
    return after


@pytest.mark.parametrize("seed", range(8))
def test_what_is_in_the_log_is_what_was_done(seed):
    """Beginnings, ways back, lost frames and kept states in any order, against a list of everything."""
    rng = np.random.default_rng(seed)
    limit, every, depth = int(rng.integers(8, 40)), int(rng.integers(2, 6)), 3
    log, before, after = EventLog(limit), list[Past](), list[Past]()
    kept: list[int] = []
    past: Past = ()
    for _ in range(300):
        if after and rng.random() < 0.1:
            lost = int(rng.integers(1, min(3, len(after)) + 1))
            log.give_back(len(after) - lost)
            if lost == len(after):
                past = ()
            else:
                past = after[len(after) - lost - 1]
            del before[len(before) - lost :], after[len(after) - lost :]
            kept = [frame for frame in kept if frame <= len(after)]
            opening = Opening(1) if not after else None
        else:
            opening = Opening(int(rng.integers(9))) if not after or rng.random() < 0.05 else None
        if opening is None and [frame for frame in kept if frame < len(after)] and rng.random() < 0.1:
            back = int(rng.choice([frame for frame in kept if frame < len(after)]))
            opening = Opening(5, memory=Memory(before[back]), back_to=back)
        if opening is not None:
            past = (opening.seed,) if opening.memory is None else opening.memory.state
        frame, keys, mouse = len(after), rng.random(4) < 0.5, (float(rng.integers(4)), 0.5)
        log.note(frame, keys, mouse, "dream", opening)
        if frame % every == 0:
            kept = [*kept, frame][-depth:]
            log.keep(frame, Opening(7, memory=Memory(past)))
        before.append(past)
        past = (*past, keys.tolist(), mouse)
        after.append(past)
        events = log.read()
        if events is None:
            continue
        assert events.frames <= limit and events.first + events.frames == len(after)
        assert events.is_cut == (events.first > 0)
        assert pasts(events) == {number: after[number] for number in range(events.first, len(after))}
        held = {id(one.opening.memory) for one in events.chapters if one.opening.memory} | {
            id(opening.memory) for _, opening in log._anchors
        }
        assert len(held) <= 4, "states on the device pile up"
    assert log.read() is not None


def test_a_session_of_beginnings_alone_is_cut_seldom_and_read_without_its_lock(monkeypatch):
    log, cuts = EventLog(100), list[int]()
    begin_at = EventLog._begin_at

    def counted(self: EventLog, frame_id: int, opening: Opening) -> None:
        cuts.append(frame_id)
        begin_at(self, frame_id, opening)

    monkeypatch.setattr(EventLog, "_begin_at", counted)
    for frame in range(1000):
        log.note(frame, np.array([frame % 2 == 0]), None, "dream", Opening(frame))
    assert cuts == [*range(50, 951, 50)][: len(cuts)] and len(cuts) >= 18
    copied = log.copy()
    log.give_back(990)
    log.note(990, np.array([True]), None, "dream", None)
    events = copied.read()
    assert events is not None and (events.first + events.frames, len(events.chapters)) == (1000, events.frames)


@pytest.fixture(scope="module")
def known() -> recording.Identity:
    """The tiny world, told of a mouse; nothing is compiled."""
    config = wm.tiny_world(0)[0].config
    world = wm.World(dataclasses.replace(config, controls=dataclasses.replace(config.controls, has_mouse=True)))
    made = recording.identity(world, wm.tiny_world(0)[1], tiny_prompts(), 2)
    # Worlds that compute in bfloat16 remember in it, and not every reader of safetensors knows that type.
    halves = {np.dtype("float32"): np.dtype(jnp.bfloat16)}
    shapes = jax.tree.map(lambda leaf: leaf.update(dtype=halves.get(leaf.dtype, leaf.dtype)), made.shapes)
    return dataclasses.replace(made, shapes=shapes)


def played(known: recording.Identity) -> Events:
    """An image, a state of a device whose noise comes from the host, and a way back."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: rng.integers(0, 2, leaf.shape).astype(leaf.dtype), known.shapes)
    memory = Memory(state, rng.bit_generator.state)
    image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    openings = [Opening(3, 1, memory=memory), Opening(4, image=image), Opening(4, image=image), Opening(4, back_to=7)]
    chapters = []
    for index, opening in enumerate(openings):
        keys = np.repeat(rng.random((4, 4)) < 0.5, 2, 0)
        chapters.append(Chapter(5 + 8 * index, "dream", opening, keys, rng.random((8, 2), np.float32) - 0.5))
    return Events(chapters, is_cut=True)


def test_a_recording_is_read_as_it_was_written(known, tmp_path):
    events, path = played(known), tmp_path / "a.zip"
    info = known.info(events, History(4, 5), "pixels", 12.5)
    recording.write(path, info, events)
    read_info, read = recording.read(path, known)
    assert read_info == info == recording.read_info(path) and (info.first_frame, info.frames) == (5, 32)
    assert (read_info.history.depth, read_info.history.every) == (4, 5) and read.is_cut
    assert sorted(zipfile.ZipFile(path).namelist()) == [
        "events.jsonl",
        "image-1.png",
        "memory-0.safetensors",
        "session.json",
    ]
    for written, again in zip(events.chapters, read.chapters, strict=True):
        assert (again.first, again.source, again.opening.seed, again.opening.prompt, again.opening.back_to) == (
            *(written.first, written.source, written.opening.seed, written.opening.prompt, written.opening.back_to),
        )
        np.testing.assert_array_equal(again.keys, written.keys)
        np.testing.assert_array_equal(again.mouse, written.mouse)
        assert (again.opening.image is None) == (written.opening.image is None)
        if written.opening.image is not None:
            np.testing.assert_array_equal(again.opening.image, written.opening.image)
    again, written = read.chapters[0].opening.memory, events.chapters[0].opening.memory
    assert again is not None and written is not None and again.stream == written.stream
    jax.tree.map(np.testing.assert_array_equal, again.state, written.state)


def forge(path: Path, changes: dict[str, Any]) -> None:
    """Writes files of a recording anew, or leaves them out."""
    with zipfile.ZipFile(path) as file:
        files = {name: file.read(name) for name in file.namelist()} | changes
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            if data is not None:
                file.writestr(name, data)


def test_what_is_no_recording_of_this_world_is_refused(known, tmp_path):
    path, events = tmp_path / "a.zip", played(known)
    info = known.info(events, History(4, 5), None, 12.5)
    recording.write(path, info, events)
    whole = path.read_bytes()
    lines = zipfile.ZipFile(path).read("events.jsonl").decode().splitlines()

    def refused(text: str, changes: dict[str, Any] | None = None, by: recording.Identity = known) -> None:
        if changes is not None:
            path.write_bytes(whole)
            forge(path, changes)
        with pytest.raises(ValueError, match=text):
            recording.read(path, by)

    def told(**fields: Any) -> dict[str, Any]:
        return {"session.json": info.model_copy(update=fields).model_dump_json(exclude_none=True)}

    def said(*new: str) -> dict[str, Any]:
        return {"events.jsonl": "\n".join(new)}

    refused("version 2, this program reads version 1", told(format=2))
    refused("no readable recording.*less than or equal", told(frames=10**9))
    refused("has 32 frames, session.json says 31", told(frames=31))
    refused(
        "has 24 frames, session.json says 32", said(*lines[: lines.index(next(x for x in lines if "back_to" in x))])
    )
    refused("speaks of frame 6 where 5 is next", said(lines[0], *lines[2:]))
    refused("no readable recording", said('{"type": "begin"'))
    refused("no readable recording", {"session.json": None})
    refused("no readable recording: .*memory-0", {"memory-0.safetensors": None})
    refused("no readable recording", {"memory-0.safetensors": b"nothing"})
    refused("other arrays than this world", {"memory-0.safetensors": save({"state": np.zeros(3)})})
    refused("KeyZ", {"events.jsonl": "\n".join(lines).replace('"held":[', '"held":["KeyZ",', 1).replace(",]", "]")})
    refused(
        "goes back to a frame before",
        {"events.jsonl": "\n".join([json.dumps(json.loads(lines[0]) | {"back_to": 2}), *lines[1:]])},
    )
    path.write_bytes(whole[: len(whole) // 2])
    refused("no readable recording")
    path.write_bytes(whole)
    other = jax.tree.map(lambda leaf: leaf + 1, wm.tiny_world(0)[1])
    refused("weights .* this is 'tiny' with weights", by=recording.identity(known.world, other, tiny_prompts(), 2))
    frames = np.zeros((1, 2, 32, 32, 3), np.uint8)
    scenes = wm.Prompt(frames, wm.Controls(np.zeros((1, 2, 4), bool)))
    refused("other first frames", by=dataclasses.replace(known, scenes_sha256=recording.scenes_sha256(scenes)))
