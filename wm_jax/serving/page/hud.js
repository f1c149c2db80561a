/** What is shown around the picture: numbers, the overlay, the size of the screen. */

/** @param {string} id */
export const at = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {string} id @param {string} value @param {string} [unit] */
function put(id, value, unit = "") {
  const element = at(id);
  const text = value + unit;
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.textContent = value;
  if (unit) element.append(Object.assign(document.createElement("small"), { textContent: unit }));
}

/** @param {import("./player.js").Player} player @param {{fps: number, wanted: number}} clock */
export function drawNumbers(player, clock) {
  const { p50, p95 } = player.latency;
  put("fps", player.fps ? player.fps.toFixed(1) : "–");
  put("latency", p50 === null ? "–" : p50.toFixed(0), p50 === null ? "" : " ms");
  put("latency95", p95 === null ? "–" : p95.toFixed(0), p95 === null ? "" : " ms");
  put("dropped", String(player.dropped));
  put("frame", String(Math.max(player.frameId, 0)));
  put("step", player.stepMs ? player.stepMs.toFixed(1) : "–", player.stepMs ? " ms" : "");
  const isSlow = clock.fps && clock.fps < clock.wanted;
  put("slow", isSlow ? `${Number(clock.fps.toFixed(1))} of ${clock.wanted} fps: the server is busy` : "");
}

/**
 * @param {{title: string, text?: string, progress?: number|null, button?: string, asksSecret?: boolean, isWaiting?: boolean}|null} what
 */
export function overlay(what) {
  at("overlay").classList.toggle("gone", what === null);
  if (what === null) return;
  at("overlay-title").textContent = what.title;
  at("overlay-text").textContent = what.text ?? "";
  at("spinner").hidden = !what.isWaiting;
  at("overlay-bar").hidden = what.progress == null;
  at("overlay-fill").style.width = `${100 * (what.progress ?? 0)}%`;
  at("overlay-button").hidden = !what.button;
  at("overlay-button").textContent = what.button ?? "";
  at("overlay-form").hidden = !what.asksSecret;
}

/** @param {"good"|"bad"|""} mood @param {string} text */
export function state(mood, text) {
  at("dot").className = `dot ${mood}`;
  at("state").textContent = text;
}

/** @param {{slots: number, slots_free: number}} limits */
export function seats({ slots, slots_free }) {
  const taken = slots - slots_free;
  const marks = slots > 12 ? [] : Array.from({ length: slots }, (_, i) => Object.assign(document.createElement("i"), { className: i < taken ? "taken" : "" }));
  at("seats").replaceChildren(...marks, `${taken} of ${slots} ${slots === 1 ? "slot" : "slots"} taken`);
}

/** From this many rows on a picture is drawn smoothly, at any size; below it in whole multiples of its pixels. */
const FINE_ROWS = 200;

/** The largest size that leaves room for what is around. @param {import("./screen.js").Screen} screen */
export function fit({ canvas, width, height }) {
  const isFlat = matchMedia("(max-height: 500px) and (orientation: landscape)").matches;
  const isNarrow = innerWidth <= 860;
  const below = document.querySelector("main.broad") ? at("keys").offsetHeight + 22 : 0;
  const room = isFlat
    ? { w: innerWidth - 16, h: innerHeight - 16 }
    : isNarrow
    ? { w: innerWidth - 24, h: Math.max(240, innerHeight * 0.52) }
    : { w: Math.min(innerWidth, below ? 1600 : 1180) - 388, h: Math.max(240, innerHeight - 86 - below) };
  const exact = Math.min(room.w / width, room.h / height);
  const isFine = height >= FINE_ROWS;
  const whole = exact >= 4 ? Math.floor(exact) : Math.max(0.25, Math.floor(exact * 4) / 4);
  const scale = isFine ? exact : whole;
  canvas.classList.toggle("fine", isFine);
  canvas.style.width = `${Math.floor(scale * width)}px`;
  canvas.style.height = `${Math.floor(scale * height)}px`;
}

/** @type {number|undefined} */
let noticeTimer;

/** A line over the picture that goes away by itself. @param {string} text */
export function notice(text) {
  clearTimeout(noticeTimer);
  at("notice").textContent = text;
  at("notice").classList.add("shown");
  noticeTimer = setTimeout(() => at("notice").classList.remove("shown"), 5000);
}
