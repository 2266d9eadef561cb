// A caption that arrives in parts, as words; each word with a map is a button that shows where the model attended.
import { describeAttention, mean } from "./maps.js";

const segmenter = new Intl.Segmenter(undefined, { granularity: "word" }); // also of scripts without blanks

export class Caption {
  constructor(line, overlay) {
    this.line = line;
    this.overlay = overlay;
    line.dir = "auto";
    line.addEventListener("keydown", (event) => this.#move(event));
    this.clear();
  }

  clear() {
    this.overlay.hide();
    this.text = "";
    this.spans = []; // {start, end, map} of each part in the text
    this.maps = []; // one per node of the line
    this.line.replaceChildren();
    this.line.classList.remove("empty");
    this.line.classList.add("streaming");
  }

  add({ text, map }) {
    this.spans.push({ start: this.text.length, end: this.text.length + text.length, map });
    this.text += text;
    this.#render();
  }

  // A caption that arrives whole; its parts, null without maps, are its words, without the blanks between them.
  show({ text, parts }) {
    this.text = text;
    let end = 0;
    for (const part of parts ?? []) {
      const start = text.indexOf(part.text, end);
      if (start >= 0) this.spans.push({ start, end: (end = start + part.text.length), map: part.map });
    }
    this.#render();
  }

  // The text, once all parts are here.
  finish() {
    this.line.classList.remove("streaming");
    if (!this.text.trim()) {
      this.line.classList.add("empty");
      this.line.textContent = "(an empty text)";
    }
    return this.line.textContent.trim();
  }

  #words() {
    return [...segmenter.segment(this.text)].map(({ segment, index, isWordLike }) => {
      const own = this.spans.filter((span) => span.map && span.start < index + segment.length && span.end > index);
      return { text: segment, map: isWordLike ? mean(own.map((span) => span.map)) : null };
    });
  }

  // Keeps the nodes of words that have not changed, so that focus and animation stay.
  #render() {
    const words = this.#words();
    this.maps = words.map((word) => word.map);
    words.forEach((word, i) => {
      const old = this.line.childNodes[i];
      if (old?.textContent === word.text) return;
      const node = word.map ? this.#button(word.text, i) : document.createTextNode(word.text);
      if (old) old.replaceWith(node);
      else this.line.append(node);
    });
    while (this.line.childNodes.length > words.length) this.line.lastChild.remove();
    const first = this.line.querySelector("button");
    if (first && !this.line.querySelector("[tabindex='0']")) first.tabIndex = 0; // one stop of the tab key for all words
  }

  #button(text, i) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    button.textContent = text;
    button.tabIndex = -1;
    const pin = this.overlay.attach(button, () => ({ map: this.maps[i], words: describeAttention(text, this.maps[i]) }));
    button.addEventListener("focus", () => {
      for (const other of this.line.querySelectorAll("button")) other.tabIndex = other === button ? 0 : -1;
      pin();
    });
    return button;
  }

  #move(event) {
    const buttons = [...this.line.querySelectorAll("button")];
    const i = buttons.indexOf(event.target);
    const [next, last] = getComputedStyle(this.line).direction === "rtl" ? ["ArrowLeft", "ArrowRight"] : ["ArrowRight", "ArrowLeft"];
    const to = { [next]: i + 1, [last]: i - 1, ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (i < 0 || to === undefined) return;
    event.preventDefault();
    buttons[Math.min(buttons.length - 1, Math.max(0, to))].focus();
  }
}
