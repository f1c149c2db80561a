/** The last seconds as a slider: let it go at a moment, and the world goes on from there. */

export class Timeline {
  /** @param {HTMLElement} box @param {() => number} newest the frame that is shown @param {(frame: number) => void} seek */
  constructor(box, newest, seek) {
    this.box = box;
    this.slider = /** @type {HTMLInputElement} */ (box.querySelector("input"));
    this.label = /** @type {HTMLOutputElement} */ (box.querySelector("output"));
    this.every = 1;
    this.fps = 30;
    this.slider.addEventListener("input", () => this._say());
    this.slider.addEventListener("change", () => {
      const back = Number(this.slider.value);
      if (back < 0) seek(newest() + back);
      this.slider.value = "0";
      this._say();
      this.slider.blur();
    });
  }

  /** @param {{kept_frames: number, kept_every: number}} capabilities @param {number} fps */
  show({ kept_frames: kept, kept_every: every }, fps) {
    this.box.hidden = kept < 2;
    this.every = every;
    this.fps = fps;
    this.slider.step = String(every);
    this.slider.min = String(-every * (kept - 1));
    this._say();
  }

  _say() {
    const back = -Number(this.slider.value);
    this.label.textContent = back ? `${(back / this.fps).toFixed(1)} s back` : "now";
  }
}
