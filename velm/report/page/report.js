"use strict";
// Everything that came from data goes into the page as text, never as markup.
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

// An image in its own proportions, with what lies over it, in a box of 4 : 3; one that is square fills a square.
function whole(number, over) {
  const box = image(number);
  box.append(over);
  const { ratio } = data.images[number];
  if (!data.images.some((other) => other.ratio !== 1)) return box;
  box.classList.add("whole");
  box.querySelectorAll("img, canvas").forEach((layer) => {
    layer.style.width = `${100 * Math.min(1, (3 / 4) * ratio)}%`;
    layer.style.height = `${100 * Math.min(1, 4 / 3 / ratio)}%`;
  });
  return box;
}

// A map: bytes, 255 where most was looked at; what was not looked at lies under a veil.
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
  const box = whole(item.image, canvas);
  const body = make("div", "body");
  if (item.source) body.append(make("div", "source", item.source));
  item.captions.forEach((caption, side) => {
    const label = data.sides.length > 1 ? make("span", side ? "side b" : "side a", side ? "B" : "A") : null;
    body.append(make("div", "caption", label, wordsOf(caption, canvas)));
  });
  body.append(references(item.references));
  const tags = item.captions.map((c) => make("span", c.exact ? "tag good" : "tag", c.exact ? "word for word" : `CIDEr-D ${c.cider.toFixed(2)}`));
  body.append(make("div", "foot", ...tags, make("span", "", data.images[item.image].name)));
  return make("article", "card", box, body);
}

function rankTags(item) {
  const tag = (rank) => make("span", rank === 1 ? "tag good" : "tag bad", rank === 1 ? "first" : `place ${rank}`);
  return make("span", "foot", ...item.ranks.map(tag));
}

function searchCard(item) {
  const found = item.found.map(([number, right]) => image(number, right));
  const ask = make("div", "ask", make("span", "", item.text), rankTags(item));
  return make("article", "card query", ask, make("div", "found", ...found));
}

function nameCard(item) {
  const lines = item.found.map(([text, right]) => make("li", right ? "right" : "", text));
  if (item.own) lines.push(make("li", "right late", item.own));
  const side = make("div", "", rankTags(item), make("ol", "hits", ...lines));
  return make("article", "card query", make("div", "pair", image(item.image), side));
}

function confusionCard(item) {
  const texts = make("div", "body",
    make("div", "", make("span", "label", "nearest sentence"), item.wrong),
    make("div", "", make("span", "label", "its own"), make("span", "muted", item.right)),
    make("div", "foot", make("span", item.margin > 0 ? "tag bad" : "tag good", `margin ${item.margin.toFixed(3)}`)));
  return make("article", "card", make("div", "versus", image(item.image), image(item.other)), texts);
}

// Cards a page at a time, so that a thousand of them open at once.
function listing(place, card, step) {
  const grid = place.querySelector(".cards");
  const more = place.querySelector(".more");
  const count = place.querySelector(".count");
  let items = [];
  let shown = 0;
  const next = () => {
    grid.append(...items.slice(shown, shown + step).map((item) => card(item)));
    shown = Math.min(items.length, shown + step);
    more.hidden = shown >= items.length;
    count.textContent = items.length ? `${shown} of ${items.length}` : "none";
  };
  more.addEventListener("click", next);
  return (wanted) => {
    items = wanted;
    shown = 0;
    grid.replaceChildren();
    next();
  };
}

function segments(place, change) {
  place.querySelectorAll(".segment").forEach((group) => {
    group.querySelectorAll("button").forEach((button) => {
      button.addEventListener("click", () => {
        group.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        change();
      });
    });
  });
  return (name) => place.querySelector(`.segment[data-name=${name}] [aria-pressed=true]`).value;
}

function captions(place) {
  const show = listing(place, captionCard, 24);
  const order = place.querySelector("select");
  const words = place.querySelector("input[type=search]");
  const by = {
    split: () => 0,
    worst: (a, b) => a.captions[0].cider - b.captions[0].cider,
    best: (a, b) => b.captions[0].cider - a.captions[0].cider,
    apart: (a, b) => gap(b) - gap(a),
  };
  const gap = (item) => Math.abs(item.captions[0].cider - item.captions.at(-1).cider);
  const update = () => {
    const query = words.value.trim().toLowerCase();
    const matches = (item) => [item.source || "", data.images[item.image].name, ...item.references, ...item.captions.map((c) => c.text)].some((text) => text.toLowerCase().includes(query));
    const wanted = which("exact");
    const kept = data.captions.filter((item) => wanted === "all" || item.captions[0].exact === (wanted === "exact"));
    show(kept.filter(matches).sort(by[order.value]));
  };
  const which = segments(place, update);
  order.addEventListener("change", update);
  words.addEventListener("input", update);
  update();
}

function retrieval(place) {
  const cards = { text_to_image: searchCard, image_to_text: nameCard };
  const show = listing(place, (item) => cards[which("way")](item), 12);
  const update = () => {
    const wanted = which("outcome");
    show(data.retrieval[which("way")].filter((item) => wanted === "all" || (item.ranks[0] === 1) === (wanted === "hits")));
  };
  const which = segments(place, update);
  update();
}

const rooms = { captions, retrieval, confusions: (place) => listing(place, confusionCard, 8)(data.confusions) };
for (const [name, open] of Object.entries(rooms)) {
  const place = document.getElementById(name);
  if (place) open(place);
}
