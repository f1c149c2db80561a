/** The buttons of a gamepad in the browser's standard layout: their names, and what they do unless the player chose otherwise. */

import { hotbar, steering } from "./keycaps.js";

const NAMES = ["A", "B", "X", "Y", "LB", "RB", "LT", "RT", "back", "start", "L3", "R3", "d-pad ↑", "d-pad ↓", "d-pad ←", "d-pad →"];
const LOOKS = { up: "right stick ↑", down: "right stick ↓", left: "right stick ←", right: "right stick →" };
/** The left stick does what the cross does. */
export const CROSS = { up: "Pad12", down: "Pad13", left: "Pad14", right: "Pad15" };
/** The right stick as buttons, where there is nothing to look around with. */
export const RIGHT_STICK = { up: "PadUp", down: "PadDown", left: "PadLeft", right: "PadRight" };
const USUAL = { Mouse0: "Pad7", Mouse2: "Pad6", Mouse1: "Pad11", Space: "Pad0", ShiftLeft: "Pad1", ControlLeft: "Pad10" };
/** Those easily reached come first. */
const FREE = [0, 7, 2, 3, 1, 6, 5, 4, 10, 11, 9, 8].map((button) => `Pad${button}`);

/** @param {string} input */
export function padName(input) {
  const look = Object.entries(RIGHT_STICK).find(([, stick]) => stick === input);
  return look ? LOOKS[look[0]] : NAMES[Number(input.slice(3))] ?? input;
}

/** The button of each key: steering on the sticks, the rest in the order of the world. @param {{code: string, label: string}[]} keys */
export function padDefaults(keys) {
  const codes = keys.map(({ code }) => code);
  /** @type {Map<string, string>} */ const buttons = new Map();
  steering(keys).forEach((ways, index) => {
    for (const [way, { code }] of Object.entries(ways)) buttons.set(code, [CROSS, RIGHT_STICK][index][way]);
  });
  for (const code of codes) if (USUAL[code]) buttons.set(code, USUAL[code]);
  const taken = new Set(buttons.values());
  const free = FREE.filter((button) => !taken.has(button));
  const slots = hotbar(keys);
  for (const code of codes) {
    if (buttons.has(code) || slots.includes(code) || !free.length) continue;
    buttons.set(code, /** @type {string} */ (free.shift()));
  }
  return buttons;
}
