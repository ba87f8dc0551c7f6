// What the parts of the page share: asking /v1, what the service said that it can, showing images and figures.

export const $ = (id) => document.getElementById(id);
export const state = { image: null, ask: null, where: "", hits: [], about: null, turn: 0 };

export async function call(path, body) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  const request = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const answer = await fetch(path, request).catch(() => { throw new Error("The service does not answer. Is it running, and is the network there?"); });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    $("key-label").hidden = false;
    if ($("key").value.trim() === (key ?? "")) {  // else another is being typed
      $("key").value = "";
      $("key").focus();
    }
    throw new Error(key ? "The API key is wrong: nobody here has it. Type it again, and press Enter." : "An API key is needed: type it above, and press Enter.");
  }
  const { message = `the service answered ${answer.status}`, hint } = said.error ?? {};
  const sentence = message[0].toUpperCase() + message.slice(1);
  throw new Error(hint ? `${sentence} (${hint})` : sentence);
}

const latest = new WeakMap();

/** Shows what is at a path in an <img>; of several that are on their way the last counts. */
export async function show(image, path) {
  latest.set(image, path);
  image.removeAttribute("src");  // the one before would stand for this one
  if (path.startsWith("data:") || !sessionStorage.getItem("key")) { image.src = path; return; }
  const blob = await (await call(path)).blob();  // an <img> cannot send a key
  if (latest.get(image) !== path) return;
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
}

export const picture = (id, size) => `v1/images/${encodeURIComponent(id)}?size=${size}`;

/** What GET /v1 says of a question, if the service can answer it. */
export const ability = (name) => state.about?.capabilities.find((one) => one.name === name && one.available);

export function captionOf(hit) {
  const wanted = $("language").value;
  for (const language of [wanted, "en", ...Object.keys(hit.captions)]) {
    if (hit.captions[language]?.length) return { language, text: hit.captions[language][0] };
  }
  return { language: "", text: "" };
}

const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

function nameOf(code) {
  try { return names.of(code); } catch { return code; }  // a code that is none
}

/** Options for the languages that a model writes; one without a name where it writes what it does not name. */
export const languageOptions = (codes) => codes.length ? codes.map((code) => new Option(`${nameOf(code)} (${code})`, code)) : [new Option("the model’s language", "")];

export const quoted = (text) => `“\u2068${text}\u2069”`;  // isolated: a query may run from right to left
export const counted = (images) => `${images.toLocaleString("en")} image${images === 1 ? "" : "s"}`;
export const percent = (value) => `${(100 * value).toFixed(value > 0.1 ? 0 : 1)} %`;

/** Where a box given in fractions of the image is, in words. */
export function placeOf([left, top, right, bottom]) {
  const spot = (from, to, words) => words[Math.min(2, Math.floor(((from + to) / 2) * 3))];
  const row = spot(top, bottom, ["top", "middle", "bottom"]), column = spot(left, right, ["left", "centre", "right"]);
  return row === "middle" && column === "centre" ? "the centre" : `the ${row} ${column}`;
}

/** An element with text in any language. */
export function said(tag, text, { language, className } = {}) {
  const made = document.createElement(tag);
  made.dir = "auto";
  made.textContent = text;
  if (language && language !== "und") made.lang = language;
  if (className) made.className = className;
  return made;
}

export function shape(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}
