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
    this.parts = [];
    this.maps = []; // one per node of the line
    this.line.replaceChildren();
    this.line.classList.remove("empty");
    this.line.classList.add("streaming");
  }

  add(part) {
    this.parts.push(part);
    this.#render();
  }

  // A caption that arrives whole: {text, parts} of the server; parts are null without maps.
  show({ text, parts }) {
    this.parts = parts ?? [{ text, map: null }];
    this.#render();
  }

  // The text, once all parts are here.
  finish() {
    const text = this.parts.map((part) => part.text).join("").trim();
    this.line.classList.remove("streaming");
    if (!text) {
      this.line.classList.add("empty");
      this.line.textContent = "(the model generated an empty text)";
    }
    return text || this.line.textContent;
  }

  #words() {
    let end = 0;
    const spans = this.parts.map(({ text, map }) => ({ start: end, end: (end += text.length), map }));
    return [...segmenter.segment(this.parts.map((part) => part.text).join(""))].map(({ segment, index, isWordLike }) => {
      const own = spans.filter((span) => span.map && span.start < index + segment.length && span.end > index);
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
