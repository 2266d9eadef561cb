// The image with a map over it: one map is pinned at a time, and the pointer previews others.
import { draw } from "./maps.js";

export class Overlay {
  constructor(frame, words, hideButton, heading) {
    this.frame = frame;
    [this.image, this.canvas] = frame.children;
    this.words = words;
    this.hideButton = hideButton;
    this.resize = "squash";
    this.pinned = null; // {control, entry}
    hideButton.addEventListener("click", () => {
      this.hide();
      heading.focus({ preventScroll: true }); // the button is gone
    });
  }

  setImage(source, name, ratio) {
    this.hide();
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.image.src = source;
    this.image.alt = name;
    this.ratio = ratio;
    this.frame.style.setProperty("--ratio", ratio);
    this.frame.hidden = false;
  }

  // Makes a button show a map: `entry()` is {map, words}, the numbers and their description. Returns the function that pins it.
  attach(control, entry) {
    const pin = () => {
      if (this.pinned?.control !== control) this.pinned?.control.setAttribute("aria-pressed", "false");
      control.setAttribute("aria-pressed", "true");
      this.pinned = { control, entry };
      this.hideButton.hidden = false;
      this.#show(entry);
    };
    control.setAttribute("aria-pressed", "false");
    control.addEventListener("click", pin);
    control.addEventListener("mouseenter", () => this.#show(entry));
    control.addEventListener("mouseleave", () => this.#show(this.pinned?.entry));
    return pin;
  }

  hide() {
    this.pinned?.control.setAttribute("aria-pressed", "false");
    this.pinned = null;
    this.hideButton.hidden = true;
    this.#show(undefined);
  }

  #show(entry) {
    const { map, words } = entry?.() ?? { map: null, words: "" };
    this.canvas.hidden = map === null;
    this.canvas.ariaLabel = words;
    if (this.words.textContent !== words) this.words.textContent = words;
    if (map !== null) draw(this.canvas, map, this.ratio, this.resize);
  }
}
