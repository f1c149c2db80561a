"""Players who wait in line for a slot."""

import wm_jax as wm
from tests.serving.conftest import serving, tiny_prompts


def test_who_waits_is_told_its_place_and_plays_when_a_slot_is_free():
    with serving(*wm.tiny_world(0), tiny_prompts(), slots=1, queue=2) as server:
        first, second, third = (server.create(init={"seed": seed}) for seed in range(3))
        assert [ticket["status"] for ticket in (first, second, third)] == ["ready", "queued", "queued"]
        assert [ticket.get("queue") for ticket in (first, second)] == [
            None,
            {"type": "queue", "position": 1, "size": 1, "eta_s": None},
        ]
        refused = server.http.post(f"{server.url}/v1/sessions", json={})
        assert refused.status_code == 503 and "2 wait" in refused.json()["message"]
        with server.connect(second) as socket, server.connect(third) as behind:
            talk, last = server.talk(socket), server.talk(behind)
            talk.wait_for("queue", position=1, size=2)
            last.wait_for("queue", position=2, size=2)
            talk.wait_for("status", status="queued")
            talk.send("action", held=["ArrowUp"], event_id="early")
            assert talk.wait_for("ack", event_id="early")["applied_at_frame"] == 0
            server.delete(first)
            frames = talk.wait_for_frames(3)
            assert frames[0][0]["frame_id"] == 0 and frames[0][0]["last_event_id"] == "early"
            assert last.wait_for("queue", position=1)["eta_s"] >= 0
            server.delete(third)
            assert last.wait_for("session.ended")["reason"] == "deleted"
        states = server.http.get(f"{server.url}/v1/sessions/{second['session_id']}").json()
        assert states["status"] in ("ready", "running")
