// Tasks of the page: their errors and results as text, for eyes and screen readers.
import { ServerError } from "./client.js";

const running = new Map(); // name -> AbortController
const errors = new Map(); // name -> message

export const $ = (id) => document.getElementById(id);

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Announces a message to screen readers.
export function say(message) {
  $("status").textContent = message;
}

// Shows the error of a task; null removes it.
export function fail(name, message) {
  if (message === null) {
    if (!errors.delete(name)) return;
  } else errors.set(name, message);
  $("alert").replaceChildren(...[...errors].map(([task, text]) => {
    const dismiss = make("button", { className: "plain", type: "button", textContent: "Dismiss" });
    dismiss.addEventListener("click", () => fail(task, null));
    return make("p", { className: "error" }, make("span", { textContent: text }), dismiss);
  }));
}

export function abort(name) {
  running.get(name)?.abort();
}

// Runs one task of a name at a time: a new one aborts the last. The part of the page with this name is busy meanwhile.
export async function run(name, action) {
  abort(name);
  const controller = new AbortController();
  running.set(name, controller);
  fail(name, null);
  $(`${name}-part`).setAttribute("aria-busy", "true");
  try {
    await action(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(name, error.message);
    if (!(error instanceof ServerError)) throw error;
  } finally {
    if (running.get(name) === controller) {
      running.delete(name);
      $(`${name}-part`).removeAttribute("aria-busy");
    }
  }
}
