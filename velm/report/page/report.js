"use strict";
// Data is inserted as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function image(number, right) {
  const { name, uri } = data.images[number];
  const box = make("div", right ? "image right" : "image");
  box.title = name;
  if (uri === null) {
    box.append("no image");
    return box;
  }
  const image = make("img");
  image.src = uri;
  image.alt = name;
  image.loading = "lazy";
  image.decoding = "async";
  box.append(image);
  return box;
}

// An image with a canvas over it: square if all images are, else in its own aspect ratio in a box of 4 : 3.
function imageWithMap(number, canvas) {
  const box = image(number);
  box.append(canvas);
  const { ratio } = data.images[number];
  if (!data.images.some((other) => other.ratio !== 1)) return box;
  box.classList.add("uncropped");
  box.querySelectorAll("img, canvas").forEach((layer) => {
    layer.style.width = `${100 * Math.min(1, (3 / 4) * ratio)}%`;
    layer.style.height = `${100 * Math.min(1, 4 / 3 / ratio)}%`;
  });
  return box;
}

// An attention map, bytes up to 255: darkens what was not attended to.
function draw(canvas, maps, index) {
  const { height, width } = maps;
  const bytes = atob(maps.bytes);
  const context = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const value = bytes.charCodeAt(index * height * width + i) / 255;
    pixels.data.set([16 + 239 * value, 18 + 150 * value, 40 - 20 * value, 205 - 180 * value], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  canvas.classList.add("on");
}

function wordsOf(caption, canvas) {
  const line = make("span", "words");
  if (!caption.maps) {
    line.append(caption.text);
    return line;
  }
  let pinned = null;
  const show = (index) => (index === null ? canvas.classList.remove("on") : draw(canvas, caption.maps, index));
  caption.maps.words.forEach((text, index) => {
    const word = make("span", "word", text);
    word.tabIndex = 0;
    word.setAttribute("role", "button");
    const pin = () => {
      pinned = pinned === index ? null : index;
      line.closest(".card").querySelectorAll(".word").forEach((other) => other.classList.remove("on"));
      word.classList.toggle("on", pinned === index);
      show(pinned);
    };
    word.addEventListener("mouseenter", () => show(index));
    word.addEventListener("mouseleave", () => show(pinned));
    word.addEventListener("click", pin);
    word.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        pin();
      }
    });
    line.append(word, " ");
  });
  return line;
}

function references(texts) {
  const list = (some) => make("ul", "refs", ...some.map((text) => make("li", "", text)));
  const few = list(texts.slice(0, 2));
  if (texts.length <= 2) return few;
  const rest = make("details", "", make("summary", "", `${texts.length - 2} more`), list(texts.slice(2)));
  return make("div", "", few, rest);
}

function captionCard(item) {
  const canvas = make("canvas");
  const box = imageWithMap(item.image, canvas);
  const body = make("div", "body");
  if (item.source) body.append(make("div", "source", item.source));
  item.captions.forEach((caption, model) => {
    const label = data.models.length > 1 ? make("span", model ? "model b" : "model a", model ? "B" : "A") : null;
    body.append(make("div", "caption", label, wordsOf(caption, canvas)));
  });
  body.append(references(item.references));
  const tags = item.captions.map((c) => make("span", c.exact ? "tag good" : "tag", c.exact ? "exact match" : `CIDEr-D ${c.cider.toFixed(2)}`));
  body.append(make("div", "foot", ...tags, make("span", "", data.images[item.image].name)));
  return make("article", "card", box, body);
}

function rankTags(item) {
  const tag = (rank) => make("span", rank === 1 ? "tag good" : "tag bad", `rank ${rank}`);
  return make("span", "foot", ...item.ranks.map(tag));
}

function textQueryCard(item) {
  const candidates = item.candidates.map(([number, right]) => image(number, right));
  const ask = make("div", "ask", make("span", "", item.text), rankTags(item));
  return make("article", "card query", ask, make("div", "candidates", ...candidates));
}

function imageQueryCard(item) {
  const lines = item.candidates.map(([text, right]) => make("li", right ? "right" : "", text));
  if (item.own) lines.push(make("li", "right late", item.own));
  const answers = make("div", "", rankTags(item), make("ol", "hits", ...lines));
  return make("article", "card query", make("div", "pair", image(item.image), answers));
}

function confusionCard(item) {
  const texts = make("div", "body",
    make("div", "", make("span", "label", "nearest wrong caption"), item.wrong),
    make("div", "", make("span", "label", "its own caption"), make("span", "muted", item.right)),
    make("div", "foot", make("span", item.margin > 0 ? "tag bad" : "tag good", `margin ${item.margin.toFixed(3)}`)));
  return make("article", "card", make("div", "versus", image(item.image), image(item.other)), texts);
}

// Shows cards page by page: a thousand at once are slow.
function listing(section, card, step) {
  const grid = section.querySelector(".cards");
  const more = section.querySelector(".more");
  const count = section.querySelector(".count");
  let items = [];
  let shown = 0;
  const next = () => {
    grid.append(...items.slice(shown, shown + step).map((item) => card(item)));
    shown = Math.min(items.length, shown + step);
    more.hidden = shown >= items.length;
    count.textContent = items.length ? `${shown} of ${items.length}` : "none";
  };
  more.addEventListener("click", next);
  return (selected) => {
    items = selected;
    shown = 0;
    grid.replaceChildren();
    next();
  };
}

function segments(section, change) {
  section.querySelectorAll(".segment").forEach((group) => {
    group.querySelectorAll("button").forEach((button) => {
      button.addEventListener("click", () => {
        group.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        change();
      });
    });
  });
  return (name) => section.querySelector(`.segment[data-name=${name}] [aria-pressed=true]`).value;
}

function captions(section) {
  const show = listing(section, captionCard, 24);
  const order = section.querySelector("select");
  const words = section.querySelector("input[type=search]");
  const by = {
    split: () => 0,
    worst: (a, b) => a.captions[0].cider - b.captions[0].cider,
    best: (a, b) => b.captions[0].cider - a.captions[0].cider,
    difference: (a, b) => gap(b) - gap(a),
  };
  const gap = (item) => Math.abs(item.captions[0].cider - item.captions.at(-1).cider);
  const update = () => {
    const query = words.value.trim().toLowerCase();
    const matches = (item) => [item.source || "", data.images[item.image].name, ...item.references, ...item.captions.map((c) => c.text)].some((text) => text.toLowerCase().includes(query));
    const choice = which("exact");
    const chosen = data.captions.filter((item) => choice === "all" || item.captions[0].exact === (choice === "exact"));
    show(chosen.filter(matches).sort(by[order.value]));
  };
  const which = segments(section, update);
  order.addEventListener("change", update);
  words.addEventListener("input", update);
  update();
}

function retrieval(section) {
  const cards = { text_to_image: textQueryCard, image_to_text: imageQueryCard };
  const show = listing(section, (item) => cards[which("way")](item), 12);
  const update = () => {
    const outcome = which("outcome");
    show(data.retrieval[which("way")].filter((item) => outcome === "all" || (item.ranks[0] === 1) === (outcome === "hits")));
  };
  const which = segments(section, update);
  update();
}

const sections = { captions, retrieval, confusions: (section) => listing(section, confusionCard, 8)(data.confusions) };
for (const [name, open] of Object.entries(sections)) {
  const section = document.getElementById(name);
  if (section) open(section);
}
