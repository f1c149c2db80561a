/** The dialog of keys and buttons: click an action, press what shall do it. */

import { inputName, isPad } from "./bindings.js";

/** These are needed to leave the dialog, or nobody can hold them. */
const NOT_FOR_KEYS = ["Tab", "MetaLeft", "MetaRight", "CapsLock"];

export class Controls {
  /** @param {HTMLDialogElement} dialog @param {import("./bindings.js").Bindings} bindings */
  constructor(dialog, bindings) {
    this.dialog = dialog;
    this.bindings = bindings;
    this.list = /** @type {HTMLElement} */ (dialog.querySelector(".bindings"));
    this.status = /** @type {HTMLElement} */ (dialog.querySelector("[role=status]"));
    /** @type {string|null} the action that waits for its key */ this.asked = null;
    this.list.addEventListener("click", ({ target }) => {
      const row = target instanceof Element ? target.closest("button") : null;
      if (row) this._ask(row.dataset.action === this.asked ? null : row.dataset.action ?? null);
    });
    dialog.querySelector(".defaults")?.addEventListener("click", () => {
      this.asked = null;
      bindings.reset();
      this._say("Everything is as the world has it.");
    });
    dialog.addEventListener("keydown", (event) => this._hearKey(event), true);
    dialog.addEventListener("cancel", (event) => this.asked !== null && event.preventDefault());
    dialog.addEventListener("close", () => this._ask(null));
    bindings.addEventListener("change", () => this._draw());
  }

  open() {
    this._ask(null);
    this.dialog.showModal();
  }

  /** A button of a pad; whether it was for the dialog. @param {string} input */
  hear(input) {
    if (!this.dialog.open) return false;
    if (this.asked) this._choose(input);
    return true;
  }

  /** @param {KeyboardEvent} event */
  _hearKey(event) {
    if (this.asked === null || NOT_FOR_KEYS.includes(event.code)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.code === "Escape") this._ask(null);
    else if (!event.repeat) this._choose(event.code);
  }

  /** @param {string} input */
  _choose(input) {
    const code = /** @type {string} */ (this.asked);
    this.asked = null;
    this.bindings.choose(code, input);
    const others = this.bindings.codesOf(input).filter((other) => other !== code);
    const also = others.map((other) => this._label(other)).join(", ");
    this._say(`${inputName(input)} is ${this._label(code)} now${also ? `, and ${also} too` : ""}.`);
  }

  /** @param {string|null} code */
  _ask(code) {
    this.asked = code;
    this._draw();
    this._say(code ? `Press a key or a pad button for ${this._label(code)}. Esc leaves it as it is.` : "Choose an action, then press what shall do it.");
  }

  /** @param {string} code */
  _label(code) {
    return this.bindings.keys.find((key) => key.code === code)?.label ?? code;
  }

  /** @param {string} text */
  _say(text) {
    this.status.textContent = text;
  }

  _draw() {
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.action : undefined;
    this.list.replaceChildren(...this.bindings.keys.map((key) => this._row(key)));
    if (focused) this.list.querySelector(`[data-action="${focused}"]`)?.["focus"]();
  }

  /** @param {{code: string, label: string}} key */
  _row({ code, label }) {
    const row = Object.assign(document.createElement("button"), { type: "button", className: "binding" });
    const { key, pad } = this.bindings.of(code);
    const clashes = this.bindings.clashes(code);
    const note = clashes.map((clash) => `${inputName(clash.input)} is ${clash.label} too`).join(", ");
    const isAsked = this.asked === code;
    row.dataset.action = code;
    row.classList.toggle("asked", isAsked);
    row.setAttribute("aria-pressed", String(isAsked));
    row.setAttribute("aria-label", `${label}: key ${inputName(key)}, gamepad ${pad === null ? "none" : inputName(pad)}${note && `; ${note}`}`);
    const texts = [["b", label], ["kbd", isAsked ? "press…" : inputName(key)], ["kbd", inputName(pad)], ["small", note]];
    row.append(...texts.map(([tag, textContent]) => Object.assign(document.createElement(tag), { textContent })));
    for (const { input } of clashes) row.children[isPad(input) ? 2 : 1].classList.add("clash");
    return row;
  }
}
