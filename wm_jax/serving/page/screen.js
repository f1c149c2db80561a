/** The picture on the page: takes messages of frames and tells when each was shown. */

import { Painter } from "./decode.js";

/** @typedef {import("./decode.js").Shown} Shown */

/** A worker that can draw on the page's canvas; null: this browser has none (no OffscreenCanvas, or no modules in workers). */
function startWorker() {
  if (!("transferControlToOffscreen" in HTMLCanvasElement.prototype) || typeof Worker !== "function") return null;
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  return new Promise((resolve) => {
    worker.onmessage = () => resolve(worker);
    worker.onerror = (event) => {
      event.preventDefault();
      resolve(null);
    };
  });
}

export class Screen {
  /** @param {HTMLCanvasElement} canvas @param {Worker|null} worker */
  constructor(canvas, worker) {
    this.canvas = canvas;
    this.worker = worker;
    this.width = canvas.width;
    this.height = canvas.height;
    /** @type {(shown: Shown) => void} */ this.onShown = () => {};
    if (worker) {
      const drawn = canvas.transferControlToOffscreen();
      worker.onerror = null;
      worker.onmessage = ({ data }) => this.onShown(data);
      worker.postMessage({ canvas: drawn }, [drawn]);
    } else this.painter = new Painter(canvas, (shown) => this.onShown(shown));
  }

  /** @param {ArrayBuffer} data is given away @param {number} stream the connection that it came by */
  take(data, stream) {
    if (this.worker) this.worker.postMessage({ data, stream }, [data]);
    else this.painter?.take(data, stream);
  }

  /** Whether `onShown` is to be told the pixels, too. @param {boolean} isWatched */
  watch(isWatched) {
    if (this.painter) this.painter.isWatched = isWatched;
    else this.worker?.postMessage({ isWatched });
  }
}

/** @param {HTMLCanvasElement} canvas */
export const makeScreen = async (canvas) => new Screen(canvas, await startWorker());
