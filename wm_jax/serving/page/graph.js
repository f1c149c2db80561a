/** The graph of the last frames: a bar for the time before each, a dot for a key that was seen in it. */

import { keep, recall } from "./store.js";
import { SAMPLES, quantile } from "./trace.js";

const STORE = "graph";
const COLORS = { good: "#4fb8ac", late: "#fbbf24", missed: "#fb7185", key: "#b9aeff", pace: "#ffffff66" };

/** @param {number|null} value */
const ms = (value) => (value === null ? "–" : value.toFixed(0));

/** Drawn a few times a second, and only while it is open. */
export class Graph {
  /** @param {HTMLElement} box @param {HTMLElement} button */
  constructor(box, button) {
    this.box = box;
    this.button = button;
    this.canvas = /** @type {HTMLCanvasElement} */ (box.querySelector("canvas"));
    this._show(recall(STORE) === true);
    button.addEventListener("click", () => this.toggle());
  }

  toggle() {
    this._show(this.box.hidden);
    keep(STORE, !this.box.hidden);
  }

  /** @param {boolean} isOpen */
  _show(isOpen) {
    this.box.hidden = !isOpen;
    this.button.setAttribute("aria-expanded", String(isOpen));
  }

  /** @param {import("./trace.js").Trace} trace @param {number} fps the world's own pace */
  draw(trace, fps) {
    if (this.box.hidden) return;
    for (const row of this.box.querySelectorAll("tr[data-of]")) {
      const values = row instanceof HTMLElement && row.dataset.of === "gap" ? trace.gaps : trace.latencies;
      [0.5, 0.95, 0.99].forEach((share, index) => (row.children[index + 1].textContent = ms(quantile(values, share))));
    }
    this._draw(trace.frames, 1000 / fps);
  }

  /** @param {{gap: number|null, latency: number|null}[]} frames @param {number} period */
  _draw(frames, period) {
    const { canvas } = this;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const sharp = [width, height].map((side) => Math.round(side * devicePixelRatio));
    if (canvas.width !== sharp[0] || canvas.height !== sharp[1]) [canvas.width, canvas.height] = sharp;
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, width, height);
    const highest = Math.max(3 * period, ...frames.map(({ latency }) => 1.1 * (latency ?? 0)));
    const y = (/** @type {number} */ time) => height - (height * Math.min(time, highest)) / highest;
    const step = width / SAMPLES;
    frames.forEach(({ gap, latency }, index) => {
      const x = width - step * (frames.length - index);
      if (gap !== null) {
        context.fillStyle = gap > 1.8 * period ? COLORS.missed : gap > 1.3 * period ? COLORS.late : COLORS.good;
        context.fillRect(x, y(gap), Math.max(1, 0.75 * step), height - y(gap));
      }
      if (latency === null) return;
      context.fillStyle = COLORS.key;
      context.fillRect(x - 1, y(latency) - 1.5, 3, 3);
    });
    context.fillStyle = COLORS.pace;
    context.fillRect(0, y(period), width, 1);
  }
}
