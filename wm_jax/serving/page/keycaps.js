/** The keys of a world as they lie under the hand: letters, arrows, a mouse, a hotbar, the rest. */

const NAMES = {
  ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "space",
  ShiftLeft: "shift", ShiftRight: "shift", ControlLeft: "ctrl", ControlRight: "ctrl", AltLeft: "alt", AltRight: "alt",
  Enter: "⏎", Tab: "tab", Escape: "esc", Mouse0: "left", Mouse1: "mid", Mouse2: "right",
};
const MOUSE = { Mouse0: "left mouse button", Mouse1: "middle mouse button", Mouse2: "right mouse button" };
const LETTERS = ["QWERT", "ASDFG", "ZXCVB"];
/** The keys that steer, hand by hand. @type {Record<string, string>[]} */
export const DIRECTIONS = [
  { up: "KeyW", down: "KeyS", left: "KeyA", right: "KeyD" },
  { up: "ArrowUp", down: "ArrowDown", left: "ArrowLeft", right: "ArrowRight" },
];
const ARROWS = { ArrowUp: [1, 2], ArrowLeft: [2, 1], ArrowDown: [2, 2], ArrowRight: [2, 3] };
/** From the keys a hand rests on to those it reaches for. */
const CLUSTERS = ["letters", "arrows", "others", "mouse", "hotbar"];

/** @param {string} code */
export const keyName = (code) => NAMES[code] ?? code.replace(/^(Key|Digit|Numpad)/, "");

/**
 * The keys a world is steered by, the way each goes: by letters, by arrows, or by both.
 * @template {{code: string}} K @param {K[]} keys @returns {Record<string, K>[]}
 */
export function steering(keys) {
  const found = DIRECTIONS.map((ways) =>
    Object.fromEntries(Object.entries(ways).flatMap(([way, code]) => keys.filter((key) => key.code === code).map((key) => [way, key]))),
  );
  return found.filter((ways) => Object.keys(ways).length > 1);
}

/** The codes of the world's hotbar, slot by slot. @param {{code: string, label: string}[]} keys */
export const hotbar = (keys) =>
  keys
    .filter(({ label }) => /^hotbar [1-9]$/.test(label))
    .sort((a, b) => a.label.localeCompare(b.label))
    .map(({ code }) => code);

/** The cluster of a key, and its row and column there if they matter. @param {string} code @returns {[string, number[]|null]} */
function place(code) {
  const letter = code.match(/^Key([A-Z])$/)?.[1] ?? "?";
  const row = LETTERS.findIndex((letters) => letters.includes(letter));
  if (row >= 0) return ["letters", [row + 1, LETTERS[row].indexOf(letter) + 1]];
  if (code in ARROWS) return ["arrows", ARROWS[code]];
  if (code in MOUSE) return ["mouse", [1, Number(code.slice(5)) + 1]];
  return [/^Digit\d$/.test(code) ? "hotbar" : "others", null];
}

/** @param {string} code @param {string} label @param {string} name of what is pressed for it @param {number[]|null} [spot] */
export function keycap(code, label, name, spot) {
  const cap = document.createElement("button");
  const [big, hint] = [document.createElement("b"), document.createElement("span")];
  big.textContent = name;
  hint.textContent = label;
  cap.append(big, hint);
  cap.className = "key" + (code === "Space" ? " wide" : "");
  cap.type = "button";
  cap.tabIndex = -1;
  cap.title = name === label ? label : `${label} (${name === NAMES[code] && MOUSE[code] ? MOUSE[code] : name})`;
  cap.setAttribute("aria-label", cap.title);
  cap.dataset.code = code;
  if (spot) [cap.style.gridRow, cap.style.gridColumn] = spot.map(String);
  return cap;
}

/**
 * Draws the keys of a world.
 * @param {HTMLElement} root
 * @param {{code: string, label: string}[]} keys
 * @param {(code: string) => string} nameOf what the player presses for it
 */
export function drawKeycaps(root, keys, nameOf) {
  const clusters = CLUSTERS.map((name) => Object.assign(document.createElement("div"), { className: `cluster ${name}` }));
  const places = keys.map(({ code }) => place(code));
  // The first row that a cluster needs: arrows without one that points up are a single row.
  const first = (/** @type {string} */ name) => Math.min(...places.map(([of, spot]) => (of === name && spot ? spot[0] : Infinity)));
  for (const { code, label } of keys) {
    const [name, spot] = place(code);
    const cap = keycap(code, label, nameOf(code), spot && [spot[0] - first(name) + 1, spot[1]]);
    clusters[CLUSTERS.indexOf(name)].append(cap);
  }
  root.replaceChildren(...clusters.filter((cluster) => cluster.childElementCount));
}
