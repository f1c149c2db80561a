/** The worker that decodes and draws, so that the page's own thread is free for keys. */

import { Painter } from "./decode.js";

/** @type {Painter|undefined} */
let painter;

/** @param {MessageEvent<{canvas?: OffscreenCanvas, data?: ArrayBuffer, stream?: number, isWatched?: boolean}>} event */
onmessage = ({ data: { canvas, data, stream, isWatched } }) => {
  if (canvas) painter = new Painter(canvas, (shown, carried) => postMessage(shown, { transfer: carried }));
  if (!painter) return;
  if (isWatched !== undefined) painter.isWatched = isWatched;
  if (data) painter.take(data, stream ?? 0);
};

// The page hands its canvas over only to a worker that has come this far.
postMessage(null);
