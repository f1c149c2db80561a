"""The curves of an evaluation as one picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wm_jax.eval.drift import TOLERANCE, WINDOW_FRAMES, Drift
from wm_jax.eval.horizon import Control, Curves

_NAMES = {
    "free": ("free-running", "#d1495b", "-"),
    "teacher": ("teacher-forced", "#00798c", "-"),
    "autoencoder": ("autoencoder ceiling", "#6c757d", ":"),
    "repeat": ("repeat last frame", "#b08900", "--"),
}


def write(path: Path, title: str, curves: Curves, control: Control | None, drift: Drift | None) -> None:
    """Writes the picture: PSNR, SSIM, control, and drift of colour and motion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", fontweight="bold")
    axes = figure.subplots(2, 3).ravel()
    _psnr(axes[0], curves)
    _ssim(axes[1], curves)
    _delta(axes[2], curves)
    _control(axes[3], control)
    _drift(axes[4], drift, ("mean", "variance"), "colour of a long dream / of the recording")
    _drift(axes[5], drift, ("motion",), "motion of a long dream / of the recording")
    _save(figure, axes, path)


def write_errors(path: Path, title: str, errors: Iterable[Any]) -> None:
    """Writes the error of few denoising passes as a picture: a curve a solver and frame (`oasis_error.Error`)."""
    from matplotlib.figure import Figure

    figure, curves = Figure(figsize=(7, 4.6), dpi=120, layout="constrained"), {}
    axis = figure.subplots()
    for one in errors:
        curves.setdefault((one.solver, one.frame), []).append((one.steps, one.relative))
    colours = {
        solver: ("#d1495b", "#00798c", "#30638e")[i] for i, solver in enumerate(dict.fromkeys(s for s, _ in curves))
    }
    styles = {frame: ("-", "--", ":")[i % 3] for i, frame in enumerate(dict.fromkeys(frame for _, frame in curves))}
    for (solver, frame), points in curves.items():
        label = f"{solver}, frame {frame}"
        axis.plot(
            *zip(*points, strict=True), styles[frame], marker="o", markersize=4, color=colours[solver], label=label
        )
    axis.set_yscale("log")
    axis.set_xlabel("passes a frame", fontsize=9)
    _title(axis, f"relative error: {title}")
    axis.legend(frameon=False, fontsize=8.5)
    _save(figure, [axis], path)


def _save(figure: Any, axes: Iterable[Any], path: Path) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path)


def _title(axis, text: str) -> None:
    axis.set_title(text, fontsize=10.5, loc="left")


def _psnr(axis, curves: Curves) -> None:
    for name, (label, colour, style) in _NAMES.items():
        values = curves.psnr[name]
        axis.plot(np.arange(1, len(values) + 1), values, style, color=colour, label=label, linewidth=1.8)
    _horizon_axis(axis, curves)
    _title(axis, "PSNR, mean of frames (dB)")
    axis.legend(frameon=False, fontsize=8.5)


def _ssim(axis, curves: Curves) -> None:
    for name, (_, colour, style) in _NAMES.items():
        axis.plot(curves.horizons, curves.ssim[name], style, marker="o", markersize=4, color=colour, linewidth=1.8)
    _horizon_axis(axis, curves)
    axis.set_ylim(None, 1)
    _title(axis, "SSIM, mean of frames")


def _horizon_axis(axis, curves: Curves) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(curves.horizons, [str(h) for h in curves.horizons])
    axis.set_xlabel("frames after the prompt", fontsize=9)


def _delta(axis, curves: Curves) -> None:
    values = curves.delta_psnr
    bars = axis.bar(np.arange(1, len(values) + 1), values, color="#edae49", width=0.6)
    axis.bar_label(bars, fmt="%.2f", fontsize=9)
    axis.set_xticks(np.arange(1, len(values) + 1))
    axis.margins(y=0.15)
    _title(axis, "Delta-PSNR: true keys - random keys (dB)")
    axis.set_xlabel("frames after the prompt", fontsize=9)


def _control(axis, control: Control | None) -> None:
    _title(axis, "keys recognised where the recording shows them")
    axis.set_ylim(0, 1.3)
    rows = [row for row in control.scores if row.is_counted] if control else []
    if control is None or not rows:
        axis.text(0.5, 0.5, "no keys that show", ha="center", transform=axis.transAxes, color="#6c757d")
        return
    places = np.arange(len(rows))
    passed = [row for row in control.autoencoded if row.is_counted]
    series = [("real", rows, "real", "#00798c"), ("autoencoded", passed, "dreamed", "#6c757d"),
              ("dreamed", rows, "dreamed", "#d1495b")]  # fmt: skip
    for i, (label, source, field, colour) in enumerate(series):
        values = [getattr(row, field) for row in source]
        bars = axis.bar(places + 0.27 * (i - 1), values, 0.25, color=colour, label=label)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.scatter(places, [row.chance for row in rows], marker="_", s=2500, color="black", linewidth=1, label="chance")
    axis.set_xticks(places, [row.name for row in rows])
    axis.legend(frameon=False, fontsize=8.5, ncols=4, loc="upper center", markerscale=0.3)


def _drift(axis, drift: Drift | None, fields: tuple[str, ...], title: str) -> None:
    _title(axis, title)
    if drift is None:
        return
    window = min(WINDOW_FRAMES, drift.frames)
    frames = window * np.arange(1, len(drift.dreamed.motion) + 1)
    styles = {"mean": ("-", "mean"), "variance": ("--", "variance"), "motion": ("-", "mean |x[t] - x[t-1]|")}
    lowest, highest = 1 - TOLERANCE, 1 + TOLERANCE
    for field in fields:
        ratio = getattr(drift.dreamed, field) / getattr(drift.real, field)
        lowest, highest = min(lowest, float(ratio.min())), max(highest, float(ratio.max()))
        columns = ratio[:, None] if ratio.ndim == 1 else ratio
        colours = ("#444444",) if ratio.ndim == 1 else ("#d1495b", "#3a8f5c", "#30638e")
        for i, colour in enumerate(colours):
            label = styles[field][1] if i == 0 else None
            axis.plot(frames, columns[:, i], styles[field][0], color=colour, linewidth=1.6, label=label)
    axis.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color="#3a8f5c", alpha=0.08)
    axis.axhline(1, color="black", linewidth=0.6)
    axis.set_ylim(max(lowest - 0.1, 0), highest + 0.1)
    axis.set_xlabel("frame of the dream", fontsize=9)
    axis.legend(frameon=False, fontsize=8.5)
