/** What was measured of the last frames: how long after the one before each was shown, and how long a key took to be seen. */

/** This many frames, and as many keys, are remembered. */
export const SAMPLES = 240;
const RECENT_MS = 2000;

/** @param {number[]} values @param {number} share */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : null;
}

export class Trace {
  constructor() {
    /** @type {{at: number, gap: number|null, latency: number|null}[]} the newest last */ this.frames = [];
    /** @type {number[]} */ this.latencies = [];
    this.lastAt = NaN;
  }

  /** @param {number} at when it was shown @param {number|null} latency of the key that it is the first to obey */
  add(at, latency) {
    this.frames.push({ at, gap: Number.isNaN(this.lastAt) ? null : at - this.lastAt, latency });
    if (this.frames.length > SAMPLES) this.frames.shift();
    this.lastAt = at;
    if (latency === null) return;
    this.latencies.push(latency);
    if (this.latencies.length > SAMPLES) this.latencies.shift();
  }

  /** A pause, a lost connection: what comes next does not follow from what was. */
  interrupt() {
    this.lastAt = NaN;
  }

  get gaps() {
    return this.frames.flatMap(({ gap }) => (gap === null ? [] : [gap]));
  }

  get fps() {
    const now = performance.now();
    const recent = this.frames.filter(({ at }) => now - at < RECENT_MS);
    return recent.length > 1 ? (1000 * (recent.length - 1)) / Math.max(now - recent[0].at, 1) : 0;
  }
}
