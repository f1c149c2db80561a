/** The keys of a world as they lie under the hand: letters, arrows, a mouse, a hotbar, the rest. */

const NAMES = {
  ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "space",
  ShiftLeft: "shift", ShiftRight: "shift", ControlLeft: "ctrl", ControlRight: "ctrl", AltLeft: "alt", AltRight: "alt",
  Enter: "⏎", Tab: "tab", Escape: "esc", Mouse0: "left", Mouse1: "mid", Mouse2: "right",
};
const MOUSE = { Mouse0: "left mouse button", Mouse1: "middle mouse button", Mouse2: "right mouse button" };
const LETTERS = ["QWERT", "ASDFG", "ZXCVB"];
const ARROWS = { ArrowUp: [1, 2], ArrowLeft: [2, 1], ArrowDown: [2, 2], ArrowRight: [2, 3] };
/** From the keys a hand rests on to those it reaches for. */
const CLUSTERS = ["letters", "arrows", "others", "mouse", "hotbar"];

/** @param {string} code */
export const keyName = (code) => NAMES[code] ?? code.replace(/^(Key|Digit|Numpad)/, "");

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

/** @param {string} code @param {string} label @param {number[]|null} spot */
function keycap(code, label, spot) {
  const cap = document.createElement("button");
  const [name, hint] = [document.createElement("b"), document.createElement("span")];
  name.textContent = keyName(code);
  hint.textContent = label;
  cap.append(name, hint);
  cap.className = "key" + (code === "Space" ? " wide" : "");
  cap.type = "button";
  cap.tabIndex = -1;
  cap.title = `${label} (${MOUSE[code] ?? keyName(code)})`;
  cap.setAttribute("aria-label", cap.title);
  cap.dataset.code = code;
  if (spot) [cap.style.gridRow, cap.style.gridColumn] = spot.map(String);
  return cap;
}

/**
 * Draws the keys of a world; the caps by their codes.
 * @param {HTMLElement} root
 * @param {{code: string, label: string}[]} keys
 */
export function drawKeycaps(root, keys) {
  const clusters = CLUSTERS.map((name) => Object.assign(document.createElement("div"), { className: `cluster ${name}` }));
  /** @type {Map<string, HTMLElement>} */
  const caps = new Map();
  const places = keys.map(({ code }) => place(code));
  // The first row that a cluster needs: arrows without one that points up are a single row.
  const first = (/** @type {string} */ name) => Math.min(...places.map(([of, spot]) => (of === name && spot ? spot[0] : Infinity)));
  for (const { code, label } of keys) {
    const [name, spot] = place(code);
    const cap = keycap(code, label, spot && [spot[0] - first(name) + 1, spot[1]]);
    clusters[CLUSTERS.indexOf(name)].append(cap);
    caps.set(code, cap);
  }
  root.replaceChildren(...clusters.filter((cluster) => cluster.childElementCount));
  return caps;
}
