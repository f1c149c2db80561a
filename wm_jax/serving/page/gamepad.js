/** Gamepads: buttons and sticks as keys, the right stick to look around; asked once a frame of the screen while one is plugged in. */

import { CROSS, RIGHT_STICK } from "./pads.js";

const DEAD_ZONE = 0.25;
/** A stick that is pushed this far counts as a direction; a trigger as pressed. */
const ENOUGH = 0.5;
/** Heights of the picture in a second, with the stick pushed all the way. */
const LOOK_SPEED = 1.2;
/** A screen that stood still must not turn the player around. */
const LONGEST_MS = 100;

/** Nothing near the middle, and from there on evenly. @param {number} x @param {number} y */
function outside(x, y) {
  const far = Math.hypot(x, y);
  const scale = far > DEAD_ZONE ? Math.min(1, (far - DEAD_ZONE) / (1 - DEAD_ZONE)) / far : 0;
  return [scale * x, scale * y];
}

/** @param {number} x @param {number} y @param {Record<"up"|"down"|"left"|"right", string>} names */
function pushed(x, y, { up, down, left, right }) {
  const ways = [[x > ENOUGH, right], [x < -ENOUGH, left], [y > ENOUGH, down], [y < -ENOUGH, up]];
  return ways.filter(([isPushed]) => isPushed).map(([, name]) => /** @type {string} */ (name));
}

export class Gamepads {
  /**
   * @param {import("./keys.js").Keys} keys
   * @param {import("./look.js").Look} look
   * @param {(input: string) => boolean} isTaken hears of every button first: whether it was meant for somebody else
   * @param {(count: number) => void} onCount
   */
  constructor(keys, look, isTaken, onCount) {
    this.keys = keys;
    this.look = look;
    this.isTaken = isTaken;
    this.onCount = onCount;
    this.isPolling = false;
    this.lastAt = 0;
    /** @type {Set<string>} */ this.down = new Set();
    addEventListener("gamepadconnected", () => this._start());
    this._start();
  }

  get pads() {
    return (navigator.getGamepads?.() ?? []).filter((pad) => pad?.connected);
  }

  _start() {
    this.onCount(this.pads.length);
    if (this.isPolling || !this.pads.length) return;
    this.isPolling = true;
    this.lastAt = performance.now();
    requestAnimationFrame((now) => this._poll(now));
  }

  /** @param {number} now */
  _poll(now) {
    const pads = this.pads;
    this._hear(new Set(pads.flatMap((pad) => this._pressed(/** @type {Gamepad} */ (pad)))));
    if (this.look.isOn) for (const pad of pads) this._turn(/** @type {Gamepad} */ (pad), Math.min(LONGEST_MS, now - this.lastAt) / 1000);
    this.lastAt = now;
    this.isPolling = pads.length > 0;
    if (this.isPolling) requestAnimationFrame((later) => this._poll(later));
    else this.onCount(0);
  }

  /** @param {Gamepad} pad */
  _pressed({ buttons, axes }) {
    const pressed = buttons.flatMap((button, index) => (button.pressed || button.value > ENOUGH ? [`Pad${index}`] : []));
    const right = this.look.isOn ? [] : pushed(axes[2] ?? 0, axes[3] ?? 0, RIGHT_STICK);
    return [...pressed, ...pushed(axes[0] ?? 0, axes[1] ?? 0, CROSS), ...right];
  }

  /** @param {Set<string>} down */
  _hear(down) {
    for (const input of down) if (!this.down.has(input) && !this.isTaken(input)) this.keys.press(input);
    for (const input of this.down) if (!down.has(input)) this.keys.lift(input);
    this.down = down;
  }

  /** @param {Gamepad} pad @param {number} seconds */
  _turn({ axes }, seconds) {
    const [x, y] = outside(axes[2] ?? 0, axes[3] ?? 0);
    if (x || y) this.look.turn(LOOK_SPEED * seconds * x, LOOK_SPEED * seconds * y);
  }
}
