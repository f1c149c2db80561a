/** A stick for a thumb: the way it is pushed holds one or two keys. */

const WAYS = ["up", "down", "left", "right"];
/** Of the radius: nearer to the middle it is at rest. */
const DEAD_ZONE = 0.28;
/** The sine of an eighth of a turn's half: between two ways both are held. */
const ENOUGH = Math.sin(Math.PI / 8);

/**
 * @param {Partial<Record<string, {code: string, label: string}>>} ways the key of each way, where there is one
 * @param {{hold: (code: string, who: string) => void, release: (code: string, who: string) => void}} keys
 */
export function makeStick(ways, keys) {
  const stick = Object.assign(document.createElement("div"), { className: "stick" });
  const knob = Object.assign(document.createElement("i"), { className: "knob" });
  const labels = WAYS.flatMap((way) => (ways[way] ? [ways[way].label] : []));
  stick.setAttribute("role", "group");
  stick.setAttribute("aria-label", `stick: ${labels.join(", ")}`);
  for (const way of WAYS) {
    if (!ways[way]) continue;
    const arm = Object.assign(document.createElement("span"), { className: `arm ${way}`, textContent: ways[way].label });
    arm.dataset.code = ways[way].code;
    stick.append(arm);
  }
  stick.append(knob);

  /** @type {number|null} */ let pointer = null;
  const push = (/** @type {number} */ x, /** @type {number} */ y) => {
    const far = Math.hypot(x, y);
    const isPushed = { up: -y, down: y, left: -x, right: x };
    for (const way of WAYS) {
      const code = ways[way]?.code;
      if (!code) continue;
      if (far > DEAD_ZONE && isPushed[way] / far > ENOUGH) keys.hold(code, `stick ${way}`);
      else keys.release(code, `stick ${way}`);
    }
    const scale = far > 1 ? 1 / far : 1;
    knob.style.transform = `translate(${50 * scale * x}%, ${50 * scale * y}%)`;
  };
  const follow = (/** @type {PointerEvent} */ event) => {
    event.preventDefault();
    event.stopPropagation(); // a thumb that slides off the stick presses no button
    if (event.type === "pointerdown" && pointer === null) {
      pointer = event.pointerId;
      stick.setPointerCapture(pointer);
    }
    if (event.pointerId !== pointer) return;
    const { left, top, width, height } = stick.getBoundingClientRect();
    push((event.clientX - left - width / 2) / (width / 2), (event.clientY - top - height / 2) / (height / 2));
  };
  const end = (/** @type {PointerEvent} */ event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    push(0, 0);
  };
  stick.addEventListener("pointerdown", follow);
  stick.addEventListener("pointermove", follow);
  stick.addEventListener("pointerup", end);
  stick.addEventListener("pointercancel", end);
  return stick;
}
