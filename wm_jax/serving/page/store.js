/** What the player has set, remembered on this machine; a browser may keep nothing, or something else. */

/** @param {string} name @returns {any} null: nothing that can be read */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`wm.${name}`) ?? "null");
  } catch {
    return null;
  }
}

/** @param {string} name @param {unknown} value null: forget it */
export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(`wm.${name}`);
    else localStorage.setItem(`wm.${name}`, JSON.stringify(value));
  } catch {
    // Kept until the page is left, then.
  }
}
