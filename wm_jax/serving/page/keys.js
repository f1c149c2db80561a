/** Held keys: from the keyboard, the mouse, pads and fingers; their keycaps light up while held. */

import { drawKeycaps, keyName } from "./keycaps.js";
import { drawTouch } from "./touch.js";

/** A tap shorter than a frame would fall between two frames: it is stretched to this many. */
const SHORTEST_FRAMES = 1.25;

/** Whether a control of the page wants this key for itself. @param {EventTarget|null} target @param {string} code */
function isForControl(target, code) {
  if (document.querySelector("dialog[open]")) return true;
  if (target instanceof HTMLButtonElement) return code === "Space" || code === "Enter";
  if (target instanceof HTMLSelectElement) return true;
  if (!(target instanceof HTMLInputElement)) return false;
  if (target.type === "checkbox") return code === "Space";
  return target.type !== "range" || /^(Arrow|Home|End|Page)/.test(code);
}

/** The keys of a world. `onChange` hears of every change of what is held. */
export class Keys {
  /**
   * @param {HTMLElement} root
   * @param {import("./bindings.js").Bindings} bindings
   * @param {(held: string[]) => void} onChange
   */
  constructor(root, bindings, onChange) {
    this.root = root;
    this.bindings = bindings;
    this.onChange = onChange;
    /** @type {Map<string, Set<string|number>>} who holds each code: an input's name, or a pointer's id */
    this.holders = new Map();
    /** @type {Map<string, number>} */
    this.since = new Map();
    this.frameMs = 1000 / 30;
    this.isTouch = matchMedia("(pointer: coarse)").matches;
    this._listen();
  }

  /** The keys of the bindings' world, as they are bound now. @param {number} [fps] */
  show(fps) {
    if (fps) this.frameMs = 1000 / fps;
    this.releaseAll();
    this._draw();
  }

  _draw() {
    this.root.classList.toggle("touch", this.isTouch);
    if (this.isTouch) drawTouch(this.root, this.bindings.keys, this);
    else drawKeycaps(this.root, this.bindings.keys, (code) => keyName(this.bindings.of(code).key));
    for (const code of this.held) this._light(code, true);
  }

  get held() {
    return [...this.holders.keys()];
  }

  /** @param {string} code @param {string|number} who */
  hold(code, who) {
    const holders = this.holders.get(code);
    if (holders) {
      holders.add(who);
      return;
    }
    this.holders.set(code, new Set([who]));
    this.since.set(code, performance.now());
    this._changed(code, true);
  }

  /** @param {string} code @param {string|number} who */
  release(code, who) {
    const holders = this.holders.get(code);
    if (!holders?.has(who)) return;
    const early = SHORTEST_FRAMES * this.frameMs - (performance.now() - (this.since.get(code) ?? 0));
    if (early > 0) {
      setTimeout(() => this.release(code, who), early);
      return;
    }
    holders.delete(who);
    if (holders.size) return;
    this.holders.delete(code);
    this._changed(code, false);
  }

  /** Pressed and released: held for one frame. @param {string} code @param {string} who */
  tap(code, who) {
    this.hold(code, who);
    this.release(code, who);
  }

  /** Whatever is bound to a key or a button. @param {string} input */
  press(input) {
    for (const code of this.bindings.codesOf(input)) this.hold(code, input);
  }

  /** @param {string} input */
  lift(input) {
    for (const code of this.held) this.release(code, input);
  }

  releaseAll() {
    for (const code of this.held) {
      this.holders.delete(code);
      this._changed(code, false);
    }
  }

  /** @param {string} code @param {boolean} isHeld */
  _changed(code, isHeld) {
    this._light(code, isHeld);
    this.onChange(this.held);
  }

  /** @param {string} code @param {boolean} isHeld */
  _light(code, isHeld) {
    for (const cap of this.root.querySelectorAll(`[data-code="${code}"]`)) cap.classList.toggle("held", isHeld);
  }

  /** Whether an input does something in this world. @param {string} input */
  isBound(input) {
    return this.bindings.codesOf(input).length > 0;
  }

  /** Ctrl, Alt and Meta are the browser's, unless they are keys of this world. @param {KeyboardEvent} event */
  isShortcut(event) {
    const isOwn = (/** @type {string} */ name) => this.isBound(`${name}Left`) || this.isBound(`${name}Right`);
    return (event.ctrlKey && !isOwn("Control")) || (event.altKey && !isOwn("Alt")) || (event.metaKey && !isOwn("Meta"));
  }

  _listen() {
    addEventListener("keydown", (event) => {
      if (!this.isBound(event.code) || this.isShortcut(event) || isForControl(event.target, event.code)) return;
      event.preventDefault();
      this.press(event.code);
    });
    addEventListener("keyup", (event) => this.lift(event.code));
    addEventListener("blur", () => this.releaseAll());
    // Ctrl is a key of some worlds, and with W it closes the page: that has to be asked first.
    addEventListener("beforeunload", (event) => this._isHolding("Control") && event.preventDefault());
    this.root.addEventListener("contextmenu", (event) => event.preventDefault());
    this.root.addEventListener("pointerdown", (event) => this._point(event));
    this.root.addEventListener("pointermove", (event) => event.buttons && this._point(event));
    for (const end of ["pointerup", "pointercancel"]) {
      addEventListener(end, (event) => {
        this._lift(/** @type {PointerEvent} */ (event).pointerId, null);
        this._meet(/** @type {PointerEvent} */ (event));
      });
    }
  }

  /** @param {string} start of an input's name */
  _isHolding(start) {
    return [...this.holders.values()].some((holders) => [...holders].some((who) => String(who).startsWith(start)));
  }

  /** Thumbs get other keys than hands: known by the first touch, where the device did not say so before. @param {PointerEvent} event */
  _meet({ pointerType }) {
    if (this.isTouch || pointerType !== "touch" || !this.bindings.keys.length) return;
    this.isTouch = true;
    this._draw();
  }

  /** A finger may slide from key to key. @param {PointerEvent} event */
  _point(event) {
    event.preventDefault();
    const under = document.elementFromPoint(event.clientX, event.clientY)?.closest(".key");
    const code = under instanceof HTMLElement ? under.dataset.code ?? null : null;
    this._lift(event.pointerId, code);
    if (code) this.hold(code, event.pointerId);
  }

  /** @param {number} pointer @param {string|null} except */
  _lift(pointer, except) {
    for (const [code, holders] of this.holders) {
      if (code !== except && holders.has(pointer)) this.release(code, pointer);
    }
  }
}
