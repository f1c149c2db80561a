/** Records what is shown, as a video file: enlarged in whole pixels, since a small world's own size would blur. */

const KINDS = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
const LEAST_ROWS = 512;
const BITS_PER_S = 8e6;

/** Hands a file to the player. @param {Blob} data @param {string} name */
export function save(data, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(data), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A name for a file of this moment: `coinrun-seed7-2026-11-22T05-37-21.webm`. @param {string} model @param {number} seed @param {string} type */
export function fileName(model, seed, type) {
  const ending = type.split(";")[0].split("/")[1] ?? "bin";
  return `${model}-seed${seed}-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.${ending}`;
}

/** The video; see `Saving` for its button. */
export class Recorder {
  /** @param {import("./screen.js").Screen} screen */
  constructor(screen) {
    this.screen = screen;
    this.kind = typeof MediaRecorder === "function" ? KINDS.find((kind) => MediaRecorder.isTypeSupported(kind)) : undefined;
    /** @type {MediaRecorder|null} */ this.media = null;
    /** @type {CanvasRenderingContext2D|null} */ this.context = null;
    this.startedAt = 0;
  }

  get isRecording() {
    return this.media !== null;
  }

  get seconds() {
    return this.media ? (performance.now() - this.startedAt) / 1000 : 0;
  }

  start() {
    const { width, height } = this.screen;
    const scale = Math.max(1, Math.ceil(LEAST_ROWS / height));
    const canvas = Object.assign(document.createElement("canvas"), { width: scale * width, height: scale * height });
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.context.imageSmoothingEnabled = false;
    this.media = new MediaRecorder(canvas.captureStream(), { mimeType: this.kind, videoBitsPerSecond: BITS_PER_S });
    this.media.start();
    this.startedAt = performance.now();
    this._draw();
  }

  /** Another frame is shown: it goes into the video when the screen has it. */
  follow() {
    if (this.media) requestAnimationFrame(() => this._draw());
  }

  _draw() {
    const { context } = this;
    context?.drawImage(this.screen.canvas, 0, 0, context.canvas.width, context.canvas.height);
  }

  /** The video, whole. @returns {Promise<Blob>} */
  stop() {
    const media = /** @type {MediaRecorder} */ (this.media);
    this.media = this.context = null;
    return new Promise((resolve) => {
      media.ondataavailable = ({ data }) => resolve(data); // once: nothing was asked for before the end
      media.stop();
      for (const track of media.stream.getTracks()) track.stop();
    });
  }
}
