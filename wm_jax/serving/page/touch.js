/** The keys of a world for thumbs: sticks to steer by, big buttons for the rest. */

import { hotbar, keycap, steering } from "./keycaps.js";
import { makeStick } from "./stick.js";

/** A stick is good for going somewhere; whatever else its ways do has a button too, as a jump. */
const GOING = /\b(up|down|left|right|forwards?|backwards?|back|ahead)\b/;
/** More than these are made smaller. */
const FEW = 6;
/** @param {string} name @param {HTMLElement[]} inside */
const box = (name, inside) => {
  const made = Object.assign(document.createElement("div"), { className: name });
  made.append(...inside);
  return made;
};

/**
 * @param {HTMLElement} root
 * @param {{code: string, label: string}[]} keys
 * @param {{hold: (code: string, who: string) => void, release: (code: string, who: string) => void}} holder
 */
export function drawTouch(root, keys, holder) {
  const sticks = steering(keys);
  const steered = sticks.flatMap((ways) => Object.values(ways)).filter(({ label }) => GOING.test(label));
  const slots = hotbar(keys);
  const button = (/** @type {{code: string, label: string}} */ { code, label }) => keycap(code, label, label);
  const rest = keys.filter((key) => !slots.includes(key.code) && !steered.some(({ code }) => code === key.code));
  const parts = sticks.map((ways) => makeStick(ways, holder));
  parts.splice(1, 0, box(rest.length > FEW ? "buttons many" : "buttons", rest.map(button)));
  const row = keys.filter(({ code }) => slots.includes(code)).map(({ code, label }) => keycap(code, label, label.replace("hotbar ", "")));
  root.replaceChildren(...parts, ...(row.length ? [box("cluster hotbar", row)] : []));
}
