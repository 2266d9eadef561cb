// Text of users and of the server is inserted as text nodes, never as markup.
import { Caption } from "./caption.js";
import { Client } from "./client.js";
import { describeSimilarity } from "./maps.js";
import { Overlay } from "./overlay.js";
import { $, abort, fail, make, run, say } from "./tasks.js";

const NO_IMAGE = "There is no image yet: drop, paste or choose one first.";
const client = new Client(askToken);
const overlay = new Overlay($("frame"), $("map-text"), $("hide-map"), $("image-heading"));
const caption = new Caption($("caption"), overlay);
const texts = new Map(); // text -> {cosine, map}; null until the server answers
let model = null; // what /v1/describe says
let image = null; // {name, data: promise of a data URL}

function askToken(refused) {
  const dialog = $("token-dialog");
  $("token-lead").textContent = refused
    ? "The server refuses this token. Check it: velm serve was started with --token or VELM_TOKEN."
    : "The server asks for the token that it was started with: velm serve --token, or VELM_TOKEN. It is kept until this tab is closed.";
  $("token").value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "send" ? $("token").value : null), { once: true });
  });
}

// ---- the image

async function take(blob, name) {
  const source = URL.createObjectURL(blob);
  const probe = new Image();
  probe.src = source;
  try {
    await probe.decode();
  } catch {
    URL.revokeObjectURL(source);
    fail("image", `${name} is not an image that this browser can show. Choose a JPEG, PNG, WebP, GIF or BMP file.`);
    return;
  }
  fail("image", null);
  image = { name, data: client.dataUrl(blob, probe.naturalWidth * probe.naturalHeight) };
  image.data.catch(() => {}); // the tasks that await it show the error
  $("invitation").hidden = true;
  overlay.setImage(source, name, probe.naturalWidth / probe.naturalHeight);
  $("image-facts").textContent = `${name}, ${probe.naturalWidth} × ${probe.naturalHeight}`;
  $("with-image").disabled = false;
  caption.clear();
  if (model.captions && model.reads.includes("image") && (!model.reads.includes("text") || $("source").value)) write(`Image: ${name}. `);
  else say(`Image: ${name}`);
  for (const text of texts.keys()) texts.set(text, null);
  if (texts.size) compare();
}

function takeFile(file) {
  if (file) take(file, file.name);
}

function openImagePart() {
  $("image-part").hidden = false;
  $("file").addEventListener("change", () => takeFile($("file").files[0]));
  $("file").addEventListener("click", () => ($("file").value = "")); // the same file again is a change, too
  $("stage").addEventListener("click", () => image ?? $("file").click());
  document.addEventListener("paste", (event) => takeFile([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  const drags = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!drags(event)) return;
    event.preventDefault();
    $("stage").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? $("stage").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    $("stage").classList.remove("over");
    if (!drags(event)) return;
    event.preventDefault();
    takeFile(event.dataTransfer.files[0]);
  });
}

// ---- the caption

function options() {
  const shown = ["num_beams", "max_length", "temperature"].filter((name) => !$(name).disabled && $(name).value);
  return Object.fromEntries(shown.map((name) => [name, $(name).valueAsNumber]));
}

async function write(lead = "") {
  const reads = (what) => model.reads.includes(what);
  if (reads("image") && !image) return fail("caption", NO_IMAGE);
  await run("caption", async (signal) => {
    caption.clear();
    $("stop").hidden = false;
    say(`${lead}Generating …`);
    try {
      const body = { maps: model.attention_map, ...options() };
      if (reads("image")) body.image = await image.data;
      if (reads("text")) body.text = $("source").value;
      if (body.num_beams > 1) caption.show((await client.caption(body, signal)).captions[0]);
      else for await (const part of client.stream(body, signal)) if (!signal.aborted) caption.add(part);
      say(`${$("caption-heading").textContent}: ${caption.finish()}`);
    } finally {
      if (!signal.aborted) $("stop").hidden = true;
    }
  });
}

function openCaptionPart() {
  const text = model.reads.includes("text");
  $("caption-part").hidden = false;
  $("caption-lead").hidden = !model.attention_map;
  $("source-field").hidden = !text;
  if (text) [$("caption-heading").textContent, $("write").textContent] = ["Generated text", "Generate"];
  for (const name of ["num_beams", "max_length", "temperature"]) $(name).value = model.options[name] ?? "";
  [$("num_beams").max, $("max_length").max] = [model.limits.beams ?? "", model.limits.max_length ?? ""];
  const exclude = () => ($("num_beams").disabled = $("temperature").value !== "");
  $("temperature").addEventListener("input", exclude);
  exclude();
  $("caption-form").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  $("source").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("caption-form").requestSubmit();
  });
  $("stop").addEventListener("click", () => {
    abort("caption");
    $("stop").hidden = true;
    say(`Stopped: ${caption.finish()}`);
    $("write").focus();
  });
}

// ---- similarity

// Asks for the cosine of every text that has none.
async function compare() {
  listTexts();
  await run("similarity", async (signal) => {
    const wanted = [...texts.keys()].filter((text) => texts.get(text) === null);
    for (const text of wanted) texts.set(text, await client.similarity({ image: await image.data, text }, signal));
    const pins = listTexts();
    if (wanted.length !== 1) return;
    say(`Cosine ${texts.get(wanted[0]).cosine.toFixed(3)}: ${wanted[0]}`);
    pins.get(wanted[0])?.();
  });
}

// One row a text, the most similar first. Returns, by text, the function that shows its map.
function listTexts() {
  const pins = new Map();
  const rows = [...texts].sort((a, b) => (b[1]?.cosine ?? 2) - (a[1]?.cosine ?? 2)).map(([text, answer]) => {
    const bar = make("span", { className: "bar", ariaHidden: "true" }, make("i", {}));
    bar.firstChild.style.width = `${100 * Math.max(0, answer?.cosine ?? 0)}%`;
    const words = make("span", { className: "words", dir: "auto", textContent: text });
    const value = make("span", { className: "value", textContent: answer?.cosine.toFixed(3) ?? "…" });
    const row = make(answer?.map ? "button" : "div", { className: "row" }, words, value, bar);
    if (answer?.map) {
      row.type = "button";
      pins.set(text, overlay.attach(row, () => ({ map: answer.map, words: describeSimilarity(text, answer.map) })));
    }
    return make("li", {}, row);
  });
  $("texts").replaceChildren(...rows);
  $("clear-texts").hidden = texts.size === 0;
  return pins;
}

function openSimilarityPart() {
  $("similarity-part").hidden = false;
  const map = model.similarity_map ? ", and the parts of the image that resemble it most; choose a text of the list to see them" : "";
  $("similarity-lead").textContent = `How well a text fits the image, as the cosine of their embeddings${map}.`;
  $("similarity-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (!image) return fail("similarity", NO_IMAGE);
    if (text) texts.set(text, null);
    compare();
    $("text").select();
  });
  $("clear-texts").addEventListener("click", () => {
    texts.clear();
    overlay.hide();
    listTexts();
    $("text").focus();
  });
}

// ---- search

async function search() {
  const query = { text: $("query").value.trim(), minus: $("minus").value.trim() };
  const body = Object.fromEntries(Object.entries(query).filter(([, text]) => text));
  const similar = $("with-image").checked && image;
  if (!similar && !body.text) return fail("search", "The search has no query: type a text, or tick “Similar to the image above”.");
  await run("search", async (signal) => {
    say("Searching …");
    if (similar) body.image = await image.data;
    const { results } = await client.search({ ...body, k: $("count").valueAsNumber }, signal);
    for (const old of $("results").querySelectorAll("img[src]")) URL.revokeObjectURL(old.src);
    $("results").replaceChildren(...results.map((result) => resultCard(result)));
    say(results.length ? `${results.length} results, the best: ${results[0].path}` : "No results.");
    await Promise.all(results.map((result, i) => loadThumbnail(result, $("results").children[i], signal)));
  });
}

function resultCard({ path, score }) {
  const name = make("span", { className: "path" }, ...path.split(/(?<=[/\\])/).flatMap((folder) => [folder, make("wbr", {})]));
  const button = make("button", { className: "result", type: "button", disabled: true }, make("span", { className: "thumbnail" }), make("span", { className: "tag", textContent: score.toFixed(3) }), name);
  return make("li", {}, button);
}

// A result is a button as soon as its thumbnail is there: it makes the thumbnail the image of the page.
async function loadThumbnail({ path, thumbnail }, card, signal) {
  const button = card.querySelector("button");
  let blob;
  try {
    blob = await client.thumbnail(thumbnail, signal);
  } catch (error) {
    if (error.name !== "AbortError") card.querySelector(".thumbnail").textContent = error.message;
    return;
  }
  card.querySelector(".thumbnail").append(make("img", { src: URL.createObjectURL(blob), alt: "" }));
  button.disabled = false;
  button.addEventListener("click", async () => {
    $("image-heading").focus();
    $("image-part").scrollIntoView();
    await take(blob, path);
  });
}

function openSearchPart() {
  $("search-part").hidden = false;
  $("search-lead").textContent = `Among ${model.search.images.toLocaleString("en")} images of the index, the most similar first. Choose a result to make it the image above.`;
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
}

// ---- what the model can do

function open() {
  const facts = [
    model.captions && (model.reads.includes("text") ? "text generation" : "captions"),
    model.embeddings && "similarity",
    model.search && `search of ${model.search.images.toLocaleString("en")} images`,
  ];
  $("model").textContent = document.title = model.model;
  $("facts").textContent = facts.filter(Boolean).join(" · ") || "This model has nothing to show here; see v1/describe.";
  $("version").textContent = `VELM ${model.version ?? ""} · images and texts go to this server only · model ${model.hash.slice(0, 12)}`;
  overlay.resize = model.image?.resize ?? "squash";
  if (model.image) openImagePart();
  if (model.captions) openCaptionPart();
  if (model.embeddings && model.image) openSimilarityPart();
  if (model.search) openSearchPart();
  $("parts").classList.toggle("narrow", !model.image);
  $("parts").hidden = false;
  document.addEventListener("keydown", (event) => event.key === "Escape" && overlay.hide());
}

async function start() {
  for (;;) {
    try {
      model = await client.describe();
      return open();
    } catch (error) {
      if (error.status !== 503) {
        $("facts").textContent = "";
        return fail("start", error.message);
      }
      $("facts").textContent = "The model is loading …";
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

start();
