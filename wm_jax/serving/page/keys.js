/** Held keys: from the keyboard, the mouse and fingers; their keycaps light up while held. */

import { drawKeycaps } from "./keycaps.js";

/** A tap shorter than a frame would fall between two frames: it is stretched to this many. */
const SHORTEST_FRAMES = 1.25;

/** Whether a control of the page wants this key for itself. @param {EventTarget|null} target @param {string} code */
function isForControl(target, code) {
  if (!(target instanceof HTMLInputElement)) return false;
  if (target.type === "checkbox") return code === "Space";
  return target.type !== "range" || /^(Arrow|Home|End|Page)/.test(code);
}

/** The keys of a world. `onChange` hears of every change of what is held. */
export class Keys {
  /**
   * @param {HTMLElement} root
   * @param {(held: string[]) => void} onChange
   */
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    /** @type {Map<string, HTMLElement>} */
    this.caps = new Map();
    /** @type {Map<string, Set<string|number>>} who holds each code: "keyboard", "mouse" or a pointer's id */
    this.holders = new Map();
    /** @type {Map<string, number>} */
    this.since = new Map();
    this.frameMs = 1000 / 30;
    this._listen();
  }

  /** @param {{code: string, label: string}[]} keys @param {number} fps */
  show(keys, fps) {
    this.frameMs = 1000 / fps;
    this.releaseAll();
    this.caps = drawKeycaps(this.root, keys);
  }

  get held() {
    return [...this.holders.keys()];
  }

  /** @param {string} code @param {string|number} who */
  hold(code, who) {
    if (!this.caps.has(code)) return;
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

  /** Everything that one holder holds. @param {string} who */
  releaseOf(who) {
    for (const code of this.held) this.release(code, who);
  }

  releaseAll() {
    for (const code of this.held) {
      this.holders.delete(code);
      this._changed(code, false);
    }
  }

  /** @param {string} code @param {boolean} isHeld */
  _changed(code, isHeld) {
    this.caps.get(code)?.classList.toggle("held", isHeld);
    this.onChange(this.held);
  }

  /** Ctrl, Alt and Meta are the browser's, unless they are keys of this world. @param {KeyboardEvent} event */
  isShortcut(event) {
    const isOwn = (/** @type {string} */ name) => this.caps.has(`${name}Left`) || this.caps.has(`${name}Right`);
    return (event.ctrlKey && !isOwn("Control")) || (event.altKey && !isOwn("Alt")) || (event.metaKey && !isOwn("Meta"));
  }

  _listen() {
    addEventListener("keydown", (event) => {
      if (!this.caps.has(event.code) || this.isShortcut(event) || isForControl(event.target, event.code)) return;
      event.preventDefault();
      this.hold(event.code, "keyboard");
    });
    addEventListener("keyup", (event) => this.release(event.code, "keyboard"));
    addEventListener("blur", () => this.releaseAll());
    // Ctrl is a key of some worlds, and with W it closes the page: that has to be asked first.
    addEventListener("beforeunload", (event) => this.held.some((code) => code.startsWith("Control")) && event.preventDefault());
    this.root.addEventListener("contextmenu", (event) => event.preventDefault());
    this.root.addEventListener("pointerdown", (event) => this._point(event));
    this.root.addEventListener("pointermove", (event) => event.buttons && this._point(event));
    for (const end of ["pointerup", "pointercancel"]) {
      addEventListener(end, (event) => this._lift(/** @type {PointerEvent} */ (event).pointerId, null));
    }
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
