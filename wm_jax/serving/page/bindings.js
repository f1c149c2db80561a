/** Which key and which pad button does what in a world: the world's own, unless the player chose others. */

import { keyName } from "./keycaps.js";
import { padDefaults, padName } from "./pads.js";
import { keep, recall } from "./store.js";

/** @typedef {{key: string, pad: string|null}} Binding what is pressed: a `KeyboardEvent.code` or a mouse button; a pad's button */

/** @param {string} input */
export const isPad = (input) => input.startsWith("Pad");
/** @param {string|null} input */
export function inputName(input) {
  if (input === null) return "–";
  return isPad(input) ? padName(input) : input.startsWith("Mouse") ? `mouse ${keyName(input)}` : keyName(input);
}

/** Events: `change`. */
export class Bindings extends EventTarget {
  constructor() {
    super();
    this.store = "";
    /** @type {{code: string, label: string}[]} */ this.keys = [];
    /** @type {Map<string, Binding>} by what the world calls the key */ this.own = new Map();
    /** @type {Record<string, Partial<Binding>>} what the player chose */ this.chosen = {};
  }

  /** @param {string} model @param {{code: string, label: string}[]} keys of that world */
  show(model, keys) {
    this.store = `bindings.${model}`;
    this.keys = keys;
    const pads = padDefaults(keys);
    this.own = new Map(keys.map(({ code }) => [code, { key: code, pad: pads.get(code) ?? null }]));
    this.chosen = {};
    for (const [code, { key, pad }] of Object.entries(Object(recall(this.store))).map(([code, found]) => [code, Object(found)])) {
      if (!this.own.has(code)) continue;
      this.chosen[code] = { ...(typeof key === "string" && { key }), ...(typeof pad === "string" && { pad }) };
    }
  }

  /** @param {string} code @returns {Binding} */
  of(code) {
    return { .../** @type {Binding} */ (this.own.get(code)), ...this.chosen[code] };
  }

  /** What an input does: more than one thing, if the player wants that. @param {string} input */
  codesOf(input) {
    const kind = isPad(input) ? "pad" : "key";
    return this.keys.filter(({ code }) => this.of(code)[kind] === input).map(({ code }) => code);
  }

  /** What else the inputs of a key do. @param {string} code @returns {{input: string, label: string}[]} */
  clashes(code) {
    const { key, pad } = this.of(code);
    return this.keys.flatMap((other) => {
      if (other.code === code) return [];
      const theirs = this.of(other.code);
      const shared = theirs.key === key ? key : pad && theirs.pad === pad ? pad : null;
      return shared ? [{ input: shared, label: other.label }] : [];
    });
  }

  /** @param {string} code @param {string} input */
  choose(code, input) {
    this.chosen[code] = { ...this.chosen[code], [isPad(input) ? "pad" : "key"]: input };
    this._changed();
  }

  /** Everything as the world has it. */
  reset() {
    this.chosen = {};
    this._changed();
  }

  _changed() {
    keep(this.store, Object.keys(this.chosen).length ? this.chosen : null);
    this.dispatchEvent(new Event("change"));
  }
}
