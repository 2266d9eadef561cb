// The server's routes. URLs are relative, so that the page also works below a proxy's prefix.
const KEY = "velm-token";
const ENVELOPE = 16384; // bytes of a request besides its image

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export class Client {
  // `ask(refused)` resolves to a token, or to null if the user gives none.
  constructor(ask) {
    this.ask = ask;
    this.asking = null;
    this.limits = {};
  }

  async describe() {
    const answer = await (await this.send("v1/describe")).json();
    this.limits = answer.limits ?? {};
    return answer;
  }

  similarity = (body, signal) => this.json("v1/similarity", body, signal);
  search = (body, signal) => this.json("v1/search", body, signal);
  caption = (body, signal) => this.json("v1/caption", body, signal);

  async thumbnail(url, signal) {
    return (await this.send(url.replace(/^\//, ""), undefined, signal)).blob();
  }

  // Yields {text, map} of each part of a caption as soon as it arrives.
  async *stream(body, signal) {
    const response = await this.send("v1/caption", { ...body, stream: true }, signal);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message);
      if (!event.done) yield event;
    }
    throw new ServerError("The server ended the caption early; try again.");
  }

  async json(path, body, signal) {
    return (await this.send(path, body, signal)).json();
  }

  // The response of a request that succeeds; asks for the token where the server wants one.
  async send(path, body, signal) {
    for (;;) {
      const token = sessionStorage.getItem(KEY);
      const response = await request(path, body, token, signal);
      if (response.ok) return response;
      if (response.status !== 401) throw new ServerError(await messageOf(response), response.status);
      if (sessionStorage.getItem(KEY) === token) await this.renewToken(token !== null);
    }
  }

  async renewToken(refused) {
    sessionStorage.removeItem(KEY);
    this.asking ??= this.ask(refused).finally(() => (this.asking = null)); // one dialog for several requests
    const token = await this.asking;
    if (token === null) throw new ServerError("The server answers only with its token. Load the page again to give it.", 401);
    sessionStorage.setItem(KEY, token);
  }

  // A data URL of an image of `pixels` pixels; scaled down only where the server would refuse it for its size.
  async dataUrl(blob, pixels) {
    const most = (this.limits.body ?? Infinity) - ENVELOPE;
    const url = await read(blob);
    const excess = Math.max(url.length / most, pixels / (this.limits.pixels ?? Infinity));
    if (excess <= 1) return url;
    const bitmap = await createImageBitmap(blob);
    for (let scale = 0.95 / Math.sqrt(excess); scale > 0.001; scale *= 0.7) {
      const smaller = await read(await scaled(bitmap, scale));
      if (smaller.length <= most) return smaller;
    }
    throw new ServerError(`The server takes requests of ${this.limits.body} bytes, too few for an image.`, 413);
  }
}

async function request(path, body, token, signal) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const post = { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
  try {
    return await fetch(path, { ...(body === undefined ? { headers } : post), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Check that velm serve still runs, then try again.");
  }
}

async function messageOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answers ${response.status} ${response.statusText}: ${text.slice(0, 300)}`;
  }
}

// The data of each server-sent event.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer = (buffer + value).replaceAll("\r", "");
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

function read(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ServerError("The file could not be read; choose it again."));
    reader.readAsDataURL(blob);
  });
}

function scaled(bitmap, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // below a transparent image: JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
