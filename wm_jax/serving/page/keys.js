/** Held keys: from the keyboard, the mouse and fingers; drawn as keycaps that light up while held. */

const NAMES = {
  ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "space",
  ShiftLeft: "shift", ShiftRight: "shift", ControlLeft: "ctrl", Enter: "⏎", Tab: "tab",
};
/** Where a key sits in its cluster: [cluster, row, column]. */
const PLACES = {
  KeyQ: [0, 1, 1], KeyW: [0, 1, 2], KeyE: [0, 1, 3], KeyA: [0, 2, 1], KeyS: [0, 2, 2], KeyD: [0, 2, 3],
  ArrowUp: [1, 1, 2], ArrowLeft: [1, 2, 1], ArrowDown: [1, 2, 2], ArrowRight: [1, 2, 3],
};
/** A tap shorter than a frame would fall between two frames: it is stretched to this many. */
const SHORTEST_FRAMES = 1.25;

/** @param {string} code */
export const keyName = (code) => NAMES[code] ?? code.replace(/^(Key|Digit|Numpad)/, "");

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
    /** @type {Map<string, Set<string|number>>} who holds each code: "keyboard" or a pointer's id */
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
    this.caps.clear();
    const clusters = [0, 1, 2].map(() => Object.assign(document.createElement("div"), { className: "cluster" }));
    for (const { code, label } of keys) {
      const [cluster, row, column] = PLACES[code] ?? [2, null, null];
      const cap = document.createElement("button");
      cap.className = "key" + (code === "Space" ? " wide" : "");
      cap.type = "button";
      cap.tabIndex = -1;
      cap.dataset.code = code;
      const name = document.createElement("b");
      name.textContent = keyName(code);
      const hint = document.createElement("span");
      hint.textContent = label;
      cap.append(name, hint);
      if (row) {
        cap.style.gridRow = String(row);
        cap.style.gridColumn = String(column);
      }
      clusters[cluster].append(cap);
      this.caps.set(code, cap);
    }
    this.root.replaceChildren(...clusters.filter((cluster) => cluster.childElementCount));
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

  _listen() {
    const isTyping = (/** @type {Event} */ event) => event.target instanceof HTMLInputElement;
    addEventListener("keydown", (event) => {
      if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey || !this.caps.has(event.code)) return;
      event.preventDefault();
      this.hold(event.code, "keyboard");
    });
    addEventListener("keyup", (event) => this.release(event.code, "keyboard"));
    addEventListener("blur", () => this.releaseAll());
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
