/** Looking around: the mouse while the picture has captured it, with its buttons as keys; a finger that drags the picture. */

import { MAX_MOUSE } from "./protocol.js";
import { keep, recall } from "./store.js";

const STORE = "look";
const BUTTONS = [0, 1, 2, 3, 4];
const SPEEDS = { least: 0.25, most: 4 };
const within = (/** @type {number} */ value, /** @type {number} */ least, /** @type {number} */ most) => Math.min(most, Math.max(least, value));

/** What the player set last time. */
function remembered() {
  const { speed, isInverted } = Object(recall(STORE));
  return { speed: within(Number(speed) || 1, SPEEDS.least, SPEEDS.most), isInverted: isInverted === true };
}

/** `onMove` hears, once a frame of the screen, how far the mouse was moved: right and down, in heights of the picture. */
export class Look {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./keys.js").Keys} keys
   * @param {(mouse: number[]) => void} onMove
   */
  constructor(canvas, keys, onMove) {
    this.canvas = canvas;
    this.keys = keys;
    this.onMove = onMove;
    this.isOn = false;
    this.settings = remembered();
    this.x = this.y = 0;
    this.gapMs = 0;
    this.toldAt = -Infinity;
    this.awaited = 0;
    /** @type {{id: number, x: number, y: number}|null} */ this.finger = null;
    this.canLock = "requestPointerLock" in canvas;
    this._listenToMouse();
    this._listenToFingers();
  }

  /** @param {boolean} hasMouse @param {number} messagesPerS what the server takes from one client */
  show(hasMouse, messagesPerS) {
    this.isOn = hasMouse;
    // A fast screen must not use up what the keys and the answers to frames need too.
    this.gapMs = 2000 / messagesPerS - 1;
    this.forget();
    if (!hasMouse) this.free();
  }

  get isCaptured() {
    return document.pointerLockElement === this.canvas;
  }

  /** Gives the mouse back to the page. */
  free() {
    if (this.isCaptured) document.exitPointerLock();
  }

  forget() {
    this.x = this.y = 0;
  }

  /** What was moved since it was last taken; null: nothing. */
  take() {
    if (!this.x && !this.y) return null;
    const moved = [this.x, this.y].map((way) => within(way, -MAX_MOUSE, MAX_MOUSE));
    this.forget();
    return moved;
  }

  /** @param {{speed?: number, isInverted?: boolean}} changed */
  set(changed) {
    this.settings = { ...this.settings, ...changed };
    keep(STORE, this.settings);
  }

  /** @param {number} right @param {number} down in pixels of the page */
  _add(right, down) {
    const height = Math.max(1, this.canvas.clientHeight);
    this.turn(right / height, down / height);
  }

  /** By whatever hand: mouse, finger, pad. @param {number} right @param {number} down in heights of the picture */
  turn(right, down) {
    const { speed, isInverted } = this.settings;
    this.x += speed * right;
    this.y += (isInverted ? -speed : speed) * down;
    this.awaited ||= requestAnimationFrame((now) => this._tell(now));
  }

  /** @param {number} now */
  _tell(now) {
    this.awaited = 0;
    if (now - this.toldAt < this.gapMs) {
      this.awaited = requestAnimationFrame((later) => this._tell(later));
      return;
    }
    const mouse = this.take();
    if (!mouse) return;
    this.toldAt = now;
    this.onMove(mouse);
  }

  _capture() {
    if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
    // Refused for a second after Esc; the hint still says what to do.
    Promise.resolve(this.canvas.requestPointerLock()).catch(() => {});
  }

  _listenToMouse() {
    this.canvas.addEventListener("contextmenu", (event) => this.isOn && event.preventDefault());
    this.canvas.addEventListener("mousedown", (event) => {
      if (!this.isOn) return;
      event.preventDefault();
      if (this.isCaptured) this.keys.press(`Mouse${event.button}`);
      else if (this.canLock && event.button === 0) this._capture();
    });
    addEventListener("mouseup", (event) => this.keys.lift(`Mouse${event.button}`));
    addEventListener("mousemove", (event) => this.isCaptured && this._add(event.movementX, event.movementY));
    document.addEventListener("pointerlockchange", () => {
      this.canvas.parentElement?.classList.toggle("captured", this.isCaptured);
      if (!this.isCaptured) for (const button of BUTTONS) this.keys.lift(`Mouse${button}`);
    });
  }

  _listenToFingers() {
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!this.isOn || this.finger || (event.pointerType === "mouse" && this.canLock)) return;
      event.preventDefault();
      this.canvas.setPointerCapture(event.pointerId);
      this.finger = { id: event.pointerId, x: event.clientX, y: event.clientY };
    });
    this.canvas.addEventListener("pointermove", ({ pointerId, clientX, clientY }) => {
      if (this.finger?.id !== pointerId) return;
      this._add(clientX - this.finger.x, clientY - this.finger.y);
      this.finger = { id: pointerId, x: clientX, y: clientY };
      this.canvas.parentElement?.classList.add("dragged");
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, (event) => {
        if (this.finger?.id === /** @type {PointerEvent} */ (event).pointerId) this.finger = null;
      });
    }
  }
}
