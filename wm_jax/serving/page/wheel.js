/** The wheel over the picture turns through the world's hotbar: it taps the key of the next slot. */

const LINE_PIXELS = 33;
/** A notch of most wheels is 100 or 120; a touchpad sends many small ones. */
const NOTCH_PIXELS = 110;
const ENOUGH = 80;

export class Wheel {
  /**
   * @param {HTMLElement} screen
   * @param {import("./keys.js").Keys} keys
   */
  constructor(screen, keys) {
    this.keys = keys;
    /** @type {string[]} */ this.slots = [];
    this.chosen = this.told = 0;
    this.turned = 0;
    /** @type {string|null} the key that the wheel itself holds for now */ this.tapping = null;
    screen.addEventListener("wheel", (event) => this._turn(event), { passive: false });
  }

  /** @param {string[]} slots the key of each slot */
  show(slots) {
    this.slots = slots;
    this.chosen = this.told = this.turned = 0;
  }

  /** A slot chosen by its own key is where the wheel goes on from. @param {string[]} held */
  hear(held) {
    const slot = this.slots.findIndex((code) => code !== this.tapping && held.includes(code));
    if (slot >= 0) this.chosen = this.told = slot;
  }

  /** @param {WheelEvent} event */
  _turn(event) {
    if (this.slots.length < 2) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE_PIXELS : 1);
    this.turned = Math.sign(pixels) === Math.sign(this.turned) ? this.turned + pixels : pixels;
    if (Math.abs(this.turned) < ENOUGH) return;
    const notches = Math.round(this.turned / NOTCH_PIXELS) || Math.sign(this.turned);
    this.turned = 0;
    this.chosen = (((this.chosen + notches) % this.slots.length) + this.slots.length) % this.slots.length;
    if (!this.tapping) this._tap();
  }

  /** One slot after the other: two in the same frame would say nothing. */
  _tap() {
    this.told = this.chosen;
    this.tapping = this.slots[this.told];
    this.keys.tap(this.tapping, "wheel");
    setTimeout(() => {
      this.tapping = null;
      if (this.chosen !== this.told) this._tap();
    }, 2.5 * this.keys.frameMs);
  }
}
