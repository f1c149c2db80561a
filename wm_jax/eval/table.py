"""The table of an evaluation: as JSON for programs, as Markdown for people, and compared with the one a world ships."""

from typing import Any

import numpy as np

from wm_jax.eval.control import Head, mean_over_heads
from wm_jax.eval.drift import TOLERANCE, Drift
from wm_jax.eval.horizon import DELTA_HORIZON, Control, Curves

FORMAT = "wm_jax.evaluation.1"
# How far apart two machines may be: sums are ordered differently there, and a free-running dream amplifies that.
_COMPARED = {"psnr_free": 0.3, "psnr_teacher": 0.3, "psnr_repeat": 0.05, "psnr_autoencoder": 0.1,
             "ssim_free": 0.01, "ssim_teacher": 0.01, "ssim_repeat": 0.005, "ssim_autoencoder": 0.005}  # fmt: skip
_DELTA_COMPARED, _RATIO_COMPARED, _DRIFT_COMPARED = 0.3, 0.03, 0.05


def horizon_rows(curves: Curves) -> list[dict[str, float | int | None]]:
    """One row a horizon; None where no clip reaches it."""
    rows = []
    for i, horizon in enumerate(curves.horizons):
        row: dict[str, float | int | None] = {"horizon": horizon, "clips": int(curves.clips[horizon - 1])}
        row |= {f"psnr_{name}": number(values[horizon - 1]) for name, values in curves.psnr.items()}
        row |= {f"ssim_{name}": number(values[i]) for name, values in curves.ssim.items()}
        rows.append(row)
    return rows


def control_facts(control: Control, heads: tuple[Head, ...]) -> dict[str, Any]:
    """Accuracies averaged over the heads that count, and every head's own."""
    facts: dict[str, Any] = {name: number(mean_over_heads(control.scores, name))
                             for name in ("real", "dreamed", "real_all", "dreamed_all")}  # fmt: skip
    facts["ratio"] = _ratio(facts["dreamed"], facts["real"])
    facts["ratio_all"] = _ratio(facts["dreamed_all"], facts["real_all"])
    facts["autoencoded"] = number(mean_over_heads(control.autoencoded, "dreamed"))
    facts["frames"] = control.frames
    facts["heads"] = [{**{k: number(v) if isinstance(v, float) else v for k, v in vars(row).items()},
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
        "largest_deviation": {name: number(value) for name, value in drift.deviation.items()},
        "real": {name: numbers(value) for name, value in vars(drift.real).items()},
        "windows": {name: numbers(value) for name, value in vars(drift.dreamed).items()},
    }


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a world must reach, and whether this one does."""
    rows = {row["horizon"]: row for row in report["horizons"]}
    found: list[tuple[str, float | None, str, bool]] = []
    if 16 in rows and rows[16]["clips"]:
        free, repeat = rows[16]["psnr_free"], rows[16]["psnr_repeat"]
        found.append(("free-running PSNR at horizon 16, dB", free, ">= 24", free >= 24))
        found.append(("the same above repeat-last-frame, dB", number(free - repeat), ">= 4", free - repeat >= 4))
    if f"{DELTA_HORIZON}" in report["delta_psnr"]:
        delta = report["delta_psnr"][f"{DELTA_HORIZON}"]
        found.append(
            (f"Delta-PSNR at horizon {DELTA_HORIZON}, dB", delta, ">= 1.5", delta is not None and delta >= 1.5)
        )
    if report["control"]:
        ratio = report["control"]["ratio"]
        found.append(("keys recognised, dreamed / real", ratio, ">= 0.85", ratio is not None and ratio >= 0.85))
    if report["drift"]:
        deviations = report["drift"]["largest_deviation"].values()
        worst = None if None in deviations else max(deviations)
        name = f"largest deviation of colour or motion over {report['drift']['frames']} frames"
        found.append((name, worst, f"<= {TOLERANCE}", worst is not None and worst <= TOLERANCE))
    if report["latency"]:
        found += _latency_bars(report["latency"])
    return [{"measure": m, "value": v, "bar": b, "passed": bool(p)} for m, v, b, p in found]


def _latency_bars(latency: dict[str, Any]) -> list[tuple[str, float | None, str, bool]]:
    fps, host, ratio, old = (latency[name] for name in ("fps", "host_us", "old_over_young", "old_frames"))
    broken, largest, bound = (latency[name] for name in ("old_not_finite", "old_largest_id", "id_bound"))
    return [
        ("frames a second, one session", fps, ">= 30", fps >= 30),
        ("host time a frame, microseconds", host, "< 200", host < 200),
        (f"step time, frame {old} / frame 100", ratio, "<= 1.05", ratio <= 1.05),
        (f"numbers of the state not finite, frame {old}", broken, "0", broken == 0),
        (f"largest frame id in the ring, frame {old}", largest, f"< {bound}", largest < bound),
    ]


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
        *(_control_part(report["control"]) if report["control"] else []),
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
    deltas = ", ".join(f"{h}: {_text(value, sign='+')}" for h, value in report["delta_psnr"].items())
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
    shares = drift["largest_deviation"].items()
    worst = ", ".join(f"{name} {'-' if value is None else f'{value:.0%}'}" for name, value in shares)
    since = f"from frame {drift['left_at']} on" if drift["left_at"] else "from its first window on"
    band = f"{drift['stays_within']:.0%} of it"
    end = f"stays within {band}" if drift["stays"] else f"is further off than {band} {since}"
    words = (
        f"Drift: {drift['sessions']} sessions of {drift['frames']} frames under recorded keys. Largest deviation of a window "
        f"from the recording: {worst}; the dream {end}."
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
        "old_not_finite": f"numbers of the state not finite, frame {latency['old_frames']}",
        "old_largest_id": f"largest frame id in the ring, frame {latency['old_frames']}",
    }
    return grid(("speed on this machine", ""), [(text, _text(latency[name], 3)) for name, text in names.items()])


def compare(report: dict[str, Any], shipped: dict[str, Any]) -> dict[str, list[str]]:
    """What differs from the table that the world ships, in words: `settings`, and `numbers` beyond their tolerance.

    Numbers are compared under equal settings only; both lists are empty where the table is reproduced. Speed is left
    out: it belongs to the machine.
    """
    if shipped.get("format") != FORMAT:
        return {"settings": [f"format is {FORMAT} here and {shipped.get('format')} there"], "numbers": []}
    ours, theirs = _settings(report), _settings(shipped)
    apart = [f"{name} is {ours[name]} here and {theirs[name]} there" for name in ours if ours[name] != theirs[name]]
    if apart:
        return {"settings": apart, "numbers": []}
    mine, its = _tolerated(report), _tolerated(shipped)
    found = [
        (name, mine.get(name, (None,))[0], its.get(name, (None,))[0], (mine | its)[name][1]) for name in mine | its
    ]
    return {"settings": [], "numbers": [f"{name}: {_text(a, 4)} here, {_text(b, 4)} there (tolerance {tolerance})"
                                        for name, a, b, tolerance in found if not _near(a, b, tolerance)]}  # fmt: skip


def verdict(compared: dict[str, list[str]]) -> list[str]:
    """The comparison with the shipped table as lines for people."""
    if compared["settings"]:
        return [f"not comparable with the shipped table: {line}" for line in compared["settings"]]
    if compared["numbers"]:
        return [f"differs from the shipped table: {line}" for line in compared["numbers"]]
    return ["the shipped table is reproduced within tolerance (speed left out: it belongs to the machine)"]


def _settings(report: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers besides the weights."""
    drift = report["drift"] or {"frames": 0, "sessions": 0}
    return {
        "seed": report["seed"],
        "clips": report["clips"],
        "prompt_frames": report["prompt_frames"],
        "horizons": [row["horizon"] for row in report["horizons"]],
        "drift_frames": drift["frames"],
        "drift_sessions": drift["sessions"],
        "sampler_steps": report["world"]["sampler_steps"],
        "the recording's checksum": report["data"]["checksum"],
        "the inverse-dynamics model": report["inverse"],
    }


def _tolerated(report: dict[str, Any]) -> dict[str, tuple[float | None, float]]:
    """Every number that is compared, by a name that says where it stands, and how far off it may be."""
    found = {
        f"{name} at horizon {row['horizon']}": (row[name], tolerance)
        for row in report["horizons"]
        for name, tolerance in _COMPARED.items()
    }
    found |= {f"Delta-PSNR at horizon {h}": (v, _DELTA_COMPARED) for h, v in report["delta_psnr"].items()}
    if report["control"]:
        names = {"ratio": "keys recognised, dreamed / real", "ratio_all": "the same over all frames"}
        found |= {text: (report["control"][name], _RATIO_COMPARED) for name, text in names.items()}
    if report["drift"]:
        deviations = report["drift"]["largest_deviation"].items()
        found |= {f"largest deviation of {name}": (value, _DRIFT_COMPARED) for name, value in deviations}
    return found


def _near(ours: float | None, theirs: float | None, tolerance: float) -> bool:
    return ours is theirs if ours is None or theirs is None else abs(ours - theirs) <= tolerance


def grid(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table, a line each, an empty one at the end."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def _text(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}}" if isinstance(value, int) else f"{value:{sign}.{digits}f}"


def number(value: Any) -> Any:
    """Four digits after the point; None where there is no number, which JSON cannot hold."""
    return round(float(value), 4) if np.isfinite(value) else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else round(part / whole, 4)


def numbers(values: np.ndarray) -> Any:
    """An array as JSON holds it: three digits after the point, None where there is no number."""
    values = np.asarray(values, np.float64)
    plain = np.array(np.round(values, 3), object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
