/** From the bytes of frames to pixels on a canvas: in a worker, and on the page where the browser has none for it. */

import { unpackFrames } from "./protocol.js";

/** @typedef {import("./protocol.js").FramesHeader} FramesHeader */
/** @typedef {{header: FramesHeader, payloads: Uint8Array[], stream: number}} Message */
/**
 * One message of frames has been shown, or could not be.
 * @typedef {Object} Shown
 * @property {number} stream the connection that it came by
 * @property {FramesHeader} header
 * @property {number} at when, in milliseconds since the epoch: a worker's own clock starts later than the page's
 * @property {number} skipped messages so far that a newer one overtook
 * @property {string} [problem] why it was not shown
 * @property {boolean} [isLost] nothing more of this stream can be shown
 * @property {ArrayBuffer} [pixels] RGBA, where they are watched
 */

/** Draws on one canvas what it is given. The newest frame wins: whatever waited while another was decoded is left out. */
export class Painter {
  /** @param {HTMLCanvasElement|OffscreenCanvas} canvas @param {(shown: Shown, carried: ArrayBuffer[]) => void} tell */
  constructor(canvas, tell) {
    this.canvas = canvas;
    const context = canvas.getContext("2d", { alpha: false });
    this.context = /** @type {CanvasRenderingContext2D|OffscreenCanvasRenderingContext2D} */ (context);
    this.tell = tell;
    this.isWatched = false;
    this.skipped = 0;
    /** @type {Message|null} */ this.waiting = null;
    this.isBusy = false;
    this.video = new Video(
      (frame, message) => this._draw(frame, message),
      (problem, message) => this._fail(problem, message, true),
    );
  }

  /** @param {ArrayBuffer} data a binary message @param {number} stream the connection that it came by */
  take(data, stream) {
    const message = { ...unpackFrames(data), stream };
    // Its frames build on each other: none can be left out.
    if (/** @type {string} */ (message.header.codec) === "h264") {
      this.video.take(message);
      return;
    }
    if (this.waiting) this.skipped++;
    this.waiting = message;
    if (!this.isBusy) this._work();
  }

  async _work() {
    this.isBusy = true;
    while (this.waiting) {
      const message = this.waiting;
      this.waiting = null;
      try {
        this._draw(await still(message), message);
      } catch (error) {
        this._fail(String(error), message, false);
      }
    }
    this.isBusy = false;
  }

  /** @param {ImageBitmap|VideoFrame} picture @param {Message} message */
  _draw(picture, { header, stream }) {
    const { canvas, context } = this;
    const { w, h } = header;
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    context.drawImage(picture, 0, 0, w, h, 0, 0, w, h); // a video's sides are even: what was added is cut off
    picture.close();
    const pixels = this.isWatched ? context.getImageData(0, 0, w, h).data.buffer : undefined;
    this._tell({ header, stream, ...(pixels && { pixels }) }, pixels ? [pixels] : []);
  }

  /** @param {string} problem @param {Message} message @param {boolean} isLost */
  _fail(problem, { header, stream }, isLost) {
    this._tell({ header, stream, problem, isLost }, []);
  }

  /** @param {Omit<Shown, "at"|"skipped">} shown @param {ArrayBuffer[]} carried */
  _tell(shown, carried) {
    this.tell({ ...shown, at: performance.timeOrigin + performance.now(), skipped: this.skipped }, carried);
  }
}

/** The last picture of a message. @param {Message} message */
function still({ header, payloads }) {
  const bytes = /** @type {Uint8Array<ArrayBuffer>} */ (payloads[payloads.length - 1]);
  const source = header.codec === "raw" ? opaque(bytes, header) : new Blob([bytes], { type: `image/${header.codec}` });
  return createImageBitmap(source);
}

/** RGB as the canvas wants it. @param {Uint8Array} rgb @param {FramesHeader} header */
function opaque(rgb, { w, h }) {
  const picture = new ImageData(w, h);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    picture.data.set(rgb.subarray(from, from + 3), to);
    picture.data[to + 3] = 255;
  }
  return picture;
}

/** H.264 as access units in Annex B; what comes before the first key unit cannot be decoded. */
class Video {
  /**
   * @param {(frame: VideoFrame, message: Message) => void} show
   * @param {(problem: string, message: Message) => void} fail
   */
  constructor(show, fail) {
    this.show = show;
    this.fail = fail;
    /** @type {VideoDecoder|null} */ this.decoder = null;
    /** @type {string|null} */ this.name = null;
    this.units = 0;
    /** @type {Map<number, Message>} by the number of their last unit */ this.within = new Map();
  }

  /** @param {Message} message */
  take(message) {
    try {
      if (message.header.key) this._open(message.header.config);
      if (!this.decoder) throw new Error("the video does not begin with a key frame");
      for (const [index, data] of message.payloads.entries()) {
        const type = message.header.key && index === 0 ? "key" : "delta";
        this.decoder.decode(new EncodedVideoChunk({ type, timestamp: ++this.units, data }));
      }
      this.within.set(this.units, message);
    } catch (error) {
      this._end(String(error));
      this.fail(String(error), message);
    }
  }

  /** @param {string|null} [name] the codec's full name, which every key frame has beside it */
  _open(name) {
    if (!name) throw new Error("the video does not say what it is");
    if (this.decoder && name === this.name) return;
    this._end("another video began");
    this.name = name;
    this.decoder = new VideoDecoder({ output: (frame) => this._put(frame), error: (error) => this._end(String(error)) });
    this.decoder.configure({ codec: name, optimizeForLatency: true });
  }

  /** @param {VideoFrame} frame */
  _put(frame) {
    const message = this.within.get(frame.timestamp);
    this.within.delete(frame.timestamp);
    if (message) this.show(frame, message);
    else frame.close();
  }

  /** What is still within comes no more. @param {string} problem */
  _end(problem) {
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
    this.decoder = null;
    for (const message of this.within.values()) this.fail(problem, message);
    this.within.clear();
  }
}
