"""The table of an evaluation: as JSON for programs, as Markdown for people, and compared with the one a world ships."""

from typing import Any

import numpy as np

from wm_jax.eval.control import Head, mean_over_heads
from wm_jax.eval.drift import TOLERANCE, Drift
from wm_jax.eval.horizon import DELTA_HORIZON, Control, Curves

FORMAT = "wm_jax.evaluation.1"
_COMPARED = {"psnr_free": 0.3, "psnr_teacher": 0.3, "psnr_repeat": 0.05, "psnr_autoencoder": 0.1, "ssim_free": 0.01}
_MUST_MATCH = ("seed", "clips", "prompt_frames", "checksum")


def horizon_rows(curves: Curves) -> list[dict[str, float | int]]:
    """One row a horizon."""
    rows = []
    for i, horizon in enumerate(curves.horizons):
        row: dict[str, float | int] = {"horizon": horizon, "clips": int(curves.clips[horizon - 1])}
        row |= {f"psnr_{name}": _round(values[horizon - 1]) for name, values in curves.psnr.items()}
        row |= {f"ssim_{name}": _round(values[i]) for name, values in curves.ssim.items()}
        rows.append(row)
    return rows


def control_facts(control: Control, heads: tuple[Head, ...]) -> dict[str, Any]:
    """Accuracies averaged over the heads that count, and every head's own."""
    facts: dict[str, Any] = {name: _round(mean_over_heads(control.scores, name))
                             for name in ("real", "dreamed", "real_all", "dreamed_all")}  # fmt: skip
    facts["ratio"] = _ratio(facts["dreamed"], facts["real"])
    facts["ratio_all"] = _ratio(facts["dreamed_all"], facts["real_all"])
    facts["autoencoded"] = _round(mean_over_heads(control.autoencoded, "dreamed"))
    facts["frames"] = control.frames
    facts["heads"] = [{**{k: _round(v) if isinstance(v, float) else v for k, v in vars(row).items()},
                       "counted": row.is_counted, "classes": head.classes}
                      for row, head in zip(control.scores, heads, strict=True)]  # fmt: skip
    return facts


def drift_facts(drift: Drift) -> dict[str, Any]:
    """Largest deviations, whether the dream stays, and the windows themselves."""
    return {
        "frames": drift.frames,
        "sessions": drift.sessions,
        "stays_within": TOLERANCE,
        "stays": drift.stays,
        "left_at": drift.left_at,
        "largest_deviation": {name: _round(value) for name, value in drift.deviation.items()},
        "real": {name: _list(value) for name, value in vars(drift.real).items()},
        "windows": {name: _list(value) for name, value in vars(drift.dreamed).items()},
    }


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a world must reach, and whether this one does."""
    rows = {row["horizon"]: row for row in report["horizons"]}
    found: list[tuple[str, float | None, str, bool]] = []
    if 16 in rows and rows[16]["clips"]:
        free, repeat = rows[16]["psnr_free"], rows[16]["psnr_repeat"]
        found.append(("free-running PSNR at horizon 16, dB", free, ">= 24", free >= 24))
        found.append(("the same above repeat-last-frame, dB", _round(free - repeat), ">= 4", free - repeat >= 4))
    if f"{DELTA_HORIZON}" in report["delta_psnr"]:
        delta = report["delta_psnr"][f"{DELTA_HORIZON}"]
        found.append((f"Delta-PSNR at horizon {DELTA_HORIZON}, dB", delta, ">= 1.5", delta >= 1.5))
    if report["control"]:
        ratio = report["control"]["ratio"]
        found.append(("keys recognised, dreamed / real", ratio, ">= 0.85", ratio is not None and ratio >= 0.85))
    if report["drift"]:
        worst = max(report["drift"]["largest_deviation"].values())
        name = f"largest deviation of colour or motion over {report['drift']['frames']} frames"
        found.append((name, worst, f"<= {TOLERANCE}", worst <= TOLERANCE))
    if report["latency"]:
        fps, host = report["latency"]["fps"], report["latency"]["host_us"]
        found.append(("frames a second, one session", fps, ">= 30", fps >= 30))
        found.append(("host time a frame, microseconds", host, "< 200", host < 200))
        ratio = report["latency"]["old_over_young"]
        name = f"step time, frame {report['latency']['old_frames']} / frame 100"
        found.append((name, ratio, "<= 1.05", ratio <= 1.05))
    return [{"measure": m, "value": v, "bar": b, "passed": bool(p)} for m, v, b, p in found]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    data, world = report["data"], report["world"]
    facts = (
        f"{world['parameters'] / 1e6:.2f} M parameters, {world['sampler_steps']} denoising passes a frame. Held-out data: "
        f"{data['recording']}, {data['frames']} frames in {data['episodes']} episodes ({data['checksum']}). "
        f"{report['clips']} clips, {report['prompt_frames']} true frames as prompt, seed {report['seed']}. "
        f"Commit {report['commit']}, {report['device']}, JAX {report['jax']}. {report['seconds']:.0f} s."
    )
    lines = [
        f"# Evaluation of {world['name']}",
        "",
        f"    {report['command']}",
        "",
        facts,
        "",
        *_bars_part(report),
        *_horizon_part(report),
        *(
            _control_part(report["control"])
            if report["control"]
            else [f"No control scores: {report['no_control']}.", ""]
        ),
        *(_drift_part(report["drift"]) if report["drift"] else []),
        *(_latency_part(report["latency"]) if report["latency"] else []),
    ]
    return "\n".join(lines)


def _bars_part(report: dict[str, Any]) -> list[str]:
    rows = [(b["measure"], _text(b["value"]), b["bar"], "yes" if b["passed"] else "NO") for b in report["bars"]]
    return grid(("measure", "value", "bar", "reached"), rows)


def _horizon_part(report: dict[str, Any]) -> list[str]:
    names = ("free", "teacher", "repeat", "autoencoder")
    head = ("frames after the prompt", "clips", "free-running", "teacher-forced", "repeat last frame", "autoencoder")
    rows = [
        (row["horizon"], row["clips"], *(f"{_text(row[f'psnr_{n}'])} / {_text(row[f'ssim_{n}'], 3)}" for n in names))
        for row in report["horizons"]
    ]
    deltas = ", ".join(f"{h}: {value:+.2f}" for h, value in report["delta_psnr"].items())
    words = (
        "PSNR (dB) / SSIM: the mean of per-frame values, a frame's PSNR at most 48.1 dB. Free-running: the world sees the "
        "prompt, then only its own frames and the true keys. Teacher-forced: every frame from the true ones before it. No "
        "clip crosses the end of an episode; a clip counts as far as its episode goes."
    )
    return [
        words,
        "",
        *grid(head, rows),
        f"Delta-PSNR (true keys minus random keys, same noise) by frames after the prompt, in dB: {deltas}.",
        "",
    ]


def _control_part(control: dict[str, Any]) -> list[str]:
    rows = [
        (row["name"] + ("" if row["counted"] else " (left out)"), f"{row['shown']:.0%}", _text(row["real"]),
         _text(row["dreamed"]), _text(row["real_all"]), _text(row["dreamed_all"]), _text(row["chance"]))
        for row in control["heads"]
    ]  # fmt: skip
    mean = ("mean of the heads", "", *(_text(control[n]) for n in ("real", "dreamed", "real_all", "dreamed_all")), "")
    head = ("keys", "shown in", "real", "dreamed", "real, all frames", "dreamed, all frames", "chance")
    words = (
        f"Keys recognised by the inverse-dynamics model in the {control['frames']} frames after the prompts (at most 16 "
        "each), balanced over classes; counted where the recording shows the keys (wm_jax/eval/control.py). Dreamed / real: "
        f"**{_text(control['ratio'])}**, over all frames {_text(control['ratio_all'])}; real frames through the autoencoder "
        f"alone: {_text(control['autoencoded'])}."
    )
    return [
        words,
        "",
        *grid(head, [*rows, mean]),
    ]


def _drift_part(drift: dict[str, Any]) -> list[str]:
    worst = ", ".join(f"{name} {value:.0%}" for name, value in drift["largest_deviation"].items())
    end = "stays within" if drift["stays"] else f"leaves (at frame {drift['left_at']})"
    words = (
        f"Drift: {drift['sessions']} sessions of {drift['frames']} frames under recorded keys. Largest deviation of a window "
        f"from the recording: {worst}; the dream {end} {drift['stays_within']:.0%}."
    )
    return [words, ""]


def _latency_part(latency: dict[str, Any]) -> list[str]:
    names = {
        "fps": "frames a second, one session",
        "step_p50_ms": "step p50, ms",
        "step_p99_ms": "step p99, ms",
        "host_us": "host time a frame, microseconds",
        "old_over_young": f"step time, frame {latency['old_frames']} / frame 100",
        "state_mb": "memory of a session, MB",
        "peak_mb": "memory of the process, MB",
        "grown_mb": f"grown by frame {latency['old_frames']}, MB",
    }
    return grid(("speed on this machine", ""), [(text, _text(latency[name], 3)) for name, text in names.items()])


def compare(report: dict[str, Any], shipped: dict[str, Any]) -> list[str]:
    """What differs from the table that the world ships: nothing, if it is reproduced within tolerance."""
    for name in _MUST_MATCH:
        ours, theirs = ({**r, **r["data"]}.get(name) for r in (report, shipped))
        if ours != theirs:
            return [f"not comparable: {name} is {ours} here and {theirs} in the shipped table"]
    found = []
    for ours, theirs in zip(report["horizons"], shipped["horizons"], strict=False):
        for name, tolerance in _COMPARED.items():
            found.append((f"{name} at horizon {ours['horizon']}", ours[name], theirs[name], tolerance))
    for h in report["delta_psnr"].keys() & shipped["delta_psnr"].keys():
        found.append((f"Delta-PSNR at horizon {h}", report["delta_psnr"][h], shipped["delta_psnr"][h], 0.3))
    if report["control"] and shipped["control"]:
        found.append(("keys recognised, ratio", report["control"]["ratio"], shipped["control"]["ratio"], 0.03))
    return [f"{name}: {ours} here, {theirs} shipped (tolerance {tolerance})"
            for name, ours, theirs, tolerance in found if abs(ours - theirs) > tolerance]  # fmt: skip


def grid(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table, a line each, an empty one at the end."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _round(value: Any) -> Any:
    """Four digits after the point; None where there is no number, which JSON cannot hold."""
    return round(float(value), 4) if np.isfinite(value) else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else round(part / whole, 4)


def _list(values: np.ndarray) -> Any:
    return np.round(np.asarray(values, np.float64), 3).tolist()
