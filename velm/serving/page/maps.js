// Maps over their image: low values are darkened, as in velm/explain/drawing.py.
const VEIL = [16, 18, 40];
const THICKNESS = 0.8;
const WIDTH = 640; // pixels of the canvas
const ROWS = ["upper", "middle", "lower"];
const COLUMNS = ["left", "centre", "right"];

// The part of an image that the model sees, in fractions of its sides: [left, top, width, height].
export function view(resize, ratio) {
  const [width, height] = [Math.min(1, 1 / ratio), Math.min(1, ratio)]; // of the largest central square
  if (resize === "crop" || resize === "shortest") return [(1 - width) / 2, (1 - height) / 2, width, height];
  if (resize === "longest") return [(1 - 1 / height) / 2, (1 - 1 / width) / 2, 1 / height, 1 / width];
  return [0, 0, 1, 1];
}

// Draws a map, rows of numbers, over an image of the given width / height.
export function draw(canvas, map, ratio, resize) {
  const small = document.createElement("canvas");
  [small.width, small.height] = [map[0].length, map.length];
  const values = map.flat();
  const least = Math.min(...values);
  const spread = Math.max(...values) - least || 1;
  const pixels = small.getContext("2d").createImageData(small.width, small.height);
  values.forEach((value, i) => pixels.data.set([...VEIL, 255 * THICKNESS * (1 - (value - least) / spread)], 4 * i));
  small.getContext("2d").putImageData(pixels, 0, 0);
  [canvas.width, canvas.height] = [WIDTH, Math.max(1, Math.round(WIDTH / ratio))];
  const context = canvas.getContext("2d");
  const box = view(resize, ratio).map((part, i) => part * (i % 2 ? canvas.height : canvas.width));
  context.fillStyle = `rgb(${VEIL.join(" ")} / ${THICKNESS})`; // what the model does not see
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(...box);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, ...box);
}

// The mean of several maps; null if there is none.
export function mean(maps) {
  if (!maps.length) return null;
  return maps[0].map((row, i) => row.map((_, j) => maps.reduce((sum, map) => sum + map[i][j], 0) / maps.length));
}

function place(row, column) {
  if (row === 1 && column === 1) return "centre";
  return column === 1 ? `${ROWS[row]} centre` : `${ROWS[row]} ${COLUMNS[column]}`;
}

function ninth(i, count) {
  return Math.min(2, Math.floor((3 * (i + 0.5)) / count));
}

// In words, where the attention of a word lies: the one or two ninths of the image with most of it.
export function describeAttention(word, map) {
  const sums = new Map();
  let total = 0;
  map.forEach((row, i) => row.forEach((value, j) => {
    const name = place(ninth(i, map.length), ninth(j, row.length));
    sums.set(name, (sums.get(name) ?? 0) + value);
    total += value;
  }));
  const [first, second] = [...sums].map(([name, sum]) => ({ name, share: sum / (total || 1) })).sort((a, b) => b.share - a.share);
  const words = ({ name, share }) => `the ${name} (${Math.round(100 * share)}%)`;
  return `“${word}”: most attention on ${words(first)}${second?.share >= 0.1 ? `, then ${words(second)}` : ""}.`;
}

// In words, where the image is most and least similar to a text.
export function describeSimilarity(text, map) {
  const cells = map.flatMap((row, i) => row.map((value, j) => [value, place(ninth(i, map.length), ninth(j, row.length))]));
  cells.sort((a, b) => b[0] - a[0]);
  const [most, least] = [cells[0], cells.at(-1)].map(([value, name]) => `in the ${name} (${value.toFixed(2)})`);
  return `“${text}”: most similar ${most}, least ${least}.`;
}
