// The page of `mmbert serve`: search, more like this, attention. Talks to /v1 alone and loads nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const PAGE = 24;
const state = { image: null, ask: null, hits: [], about: null, turn: 0, maps: null, looking: null, pinned: null };

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) $("key-label").hidden = false;
  const { message = `the service answered ${answer.status}`, hint } = said.error ?? {};
  throw new Error(hint ? `${message} (${hint})` : message);
}

async function show(image, path) {
  if (!sessionStorage.getItem("key")) { image.src = path; return; }
  const blob = await (await call(path)).blob();  // an <img> cannot send a key
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
}

const picture = (id, size) => `v1/images/${encodeURIComponent(id)}?size=${size}`;

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function captionOf(hit) {
  const wanted = $("language").value;
  for (const language of [wanted, "en", ...Object.keys(hit.captions)]) {
    if (hit.captions[language]?.length) return { language, text: hit.captions[language][0] };
  }
  return { language: "", text: "" };
}

const quoted = (text) => `“\u2068${text}\u2069”`;  // isolated: a query may run from right to left
const percent = (value) => `${(100 * value).toFixed(value > 0.1 ? 0 : 1)} %`;

function tile(hit) {
  const item = $("tile").content.firstElementChild.cloneNode(true);
  const { language, text } = captionOf(hit);
  const image = item.querySelector("img");
  image.alt = text || hit.name;
  show(image, picture(hit.id, 320)).catch((error) => { image.alt = error.message; });
  item.querySelector(".rank").textContent = hit.rank;
  const scores = item.querySelector(".scores");
  const add = (label, value, title) => {
    const part = document.createElement("span");
    part.title = title;
    const strong = document.createElement("b");
    strong.textContent = value;
    part.append(`${label} `, strong);
    scores.append(part);
  };
  if (hit.match !== null) add("match", percent(hit.match), "probability that text and image belong together");
  else if (hit.probability !== null) add("likely", percent(hit.probability), "probability judged by the score");
  add("cosine", hit.score.toFixed(3), "cosine of the vectors of query and image");
  const caption = item.querySelector(".caption");
  caption.textContent = text;
  if (language && language !== "und") caption.lang = language;
  const name = item.querySelector(".name");
  name.textContent = name.title = hit.name;
  const like = item.querySelector(".like");
  like.setAttribute("aria-label", `More like ${text || hit.name}`);
  like.addEventListener("click", () => { clearImage(); $("text").value = ""; run({ like: hit.id }, `Images like ${quoted(text || hit.name)}`); });
  const inside = item.querySelector(".inside");
  inside.hidden = !can("attention");
  inside.setAttribute("aria-label", `Look inside ${text || hit.name}`);
  inside.addEventListener("click", () => look(hit, state.ask.text ?? text));
  return item;
}

const can = (name) => state.about?.capabilities.some((one) => one.name === name && one.available);

async function run(ask, title, more = false) {
  const turn = ++state.turn;
  state.ask = ask;
  const offset = more ? state.hits.length : 0;
  say(more ? "Loading more…" : "Searching…");
  $("results").setAttribute("aria-busy", "true");
  try {
    const where = $("where").value.trim();
    const body = { ...ask, k: PAGE, offset, ...(where ? { where } : {}), ...(ask.text ? { rerank: state.about?.rerank ?? 0 } : {}) };
    const found = await (await call("v1/search", body)).json();
    if (turn !== state.turn) return;  // a later search was faster
    state.title = title;
    state.hits = more ? [...state.hits, ...found.hits] : found.hits;
    if (!more) $("results").replaceChildren();
    const tiles = found.hits.map(tile);
    $("results").append(...tiles);
    $("more").hidden = found.hits.length < PAGE;
    say(state.hits.length ? `${title}: ${state.hits.length} of ${found.images.toLocaleString("en")} images` : `${title}: nothing found`);
    if (more) tiles[0]?.querySelector(".like").focus();
  } catch (error) {
    if (turn === state.turn) say(error.message, true);
  } finally {
    $("results").removeAttribute("aria-busy");
  }
}

function submit() {
  const text = $("text").value.trim();
  if (!text && !state.image) { say("Type what to look for, or choose an image."); return; }
  $("weight-label").hidden = !(text && state.image);
  const ask = {};
  if (text) ask.text = text;
  if (state.image) ask.image = state.image;
  if (text && state.image) ask.image_weight = Number($("weight").value);
  const url = new URL(location.href);
  if (text) url.searchParams.set("q", text); else url.searchParams.delete("q");
  history.replaceState(null, "", url);
  run(ask, text && state.image ? `${quoted(text)} and the image` : text ? quoted(text) : "Images like yours");
}

function clearImage() {
  state.image = null;
  $("asked-image").hidden = $("weight-label").hidden = true;
}

function takeFile(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onerror = () => say("The file cannot be read.", true);
  reader.onload = () => {
    state.image = reader.result;
    $("asked-image").querySelector("img").src = reader.result;
    $("asked-image").hidden = false;
    submit();
  };
  reader.readAsDataURL(file);
}

// -- attention ----------------------------------------------------------------------------------------------------

async function look(hit, text) {
  state.looking = hit;
  $("look-text").value = text;
  $("look-image").alt = captionOf(hit).text || hit.name;
  await show($("look-image"), picture(hit.id, 640));
  $("look").showModal();
  read();
}

async function read() {
  const text = $("look-text").value.trim();
  $("words").replaceChildren();
  light(null);
  if (!text) { $("look-said").textContent = "Type a caption."; return; }
  $("look-said").textContent = "Reading…";
  try {
    state.maps = await (await call("v1/attention", { text, id: state.looking.id })).json();
  } catch (error) { $("look-said").textContent = error.message; return; }
  $("look-said").textContent = "";
  const { match, layers, heads } = state.maps;
  $("look-match").textContent = match === null ? "" : `Image and caption belong together: ${percent(match)}`;
  choices($("layer"), layers);
  choices($("head"), heads);
  state.pinned = null;
  $("words").append(...state.maps.words.map((word, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("pointerenter", () => light(number));
    button.addEventListener("focus", () => light(number));
    button.addEventListener("pointerleave", () => light(state.pinned));
    button.addEventListener("blur", () => light(state.pinned));
    button.addEventListener("click", () => pin(state.pinned === number ? null : number));
    return button;
  }));
  if (state.maps.words.length === 1) pin(0);
}

function pin(number) {
  state.pinned = number;
  [...$("words").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
  light(number);
}

function choices(select, count) {
  const before = select.value;
  const made = ["all", ...Array(count).keys()].map((value) => new Option(value === "all" ? "all (mean)" : value, value));
  select.replaceChildren(...made);
  if (made.some((option) => option.value === before)) select.value = before;
}

function strengths(word) {
  const { weights, boxes } = state.maps;
  const some = (rows, value) => (value === "all" ? rows : [rows[Number(value)]]);
  const sums = boxes.map(() => 0);
  for (const layer of some(weights, $("layer").value)) {
    for (const head of some(layer, $("head").value)) head[word].forEach((weight, region) => { sums[region] += weight; });
  }
  return sums;
}

function light(word) {
  const cells = $("cells");
  cells.replaceChildren();
  cells.parentElement.classList.toggle("lit", word !== null);
  if (word === null || !state.maps) return;
  const values = strengths(word);
  const parts = values.slice(1);  // region 0 is the whole image
  const low = Math.min(...parts), high = Math.max(...parts);
  state.maps.boxes.slice(1).forEach(([left, top, right, bottom], i) => {
    const cell = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    cell.setAttribute("x", left); cell.setAttribute("y", top);
    cell.setAttribute("width", right - left); cell.setAttribute("height", bottom - top);
    cell.setAttribute("fill-opacity", high > low ? (0.8 * (parts[i] - low)) / (high - low) : 0);
    cells.append(cell);
  });
  const best = parts.indexOf(high);
  const [left, top, right, bottom] = state.maps.boxes[best + 1];
  const spot = (from, to, names) => names[Math.min(2, Math.floor(((from + to) / 2) * 3))];
  const total = values.reduce((sum, value) => sum + value, 0);
  $("look-said").textContent = `${quoted(state.maps.words[word])} looks most at ${spot(top, bottom, ["the top", "the middle", "the bottom"])} ${spot(left, right, ["left", "centre", "right"])} (${percent(high / total)} of its attention to the image; the image as a whole ${percent(values[0] / total)}).`;
}

// -- starting -----------------------------------------------------------------------------------------------------

async function start() {
  try {
    state.about = await (await call("v1")).json();
  } catch (error) { say(error.message, true); return; }
  const { images, model, languages, columns } = state.about;
  $("about").textContent = `${images.toLocaleString("en")} images${model ? `, model ${model}` : ""}`;
  const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
  const known = languages.filter((code) => code !== "und");
  $("language").replaceChildren(...known.map((code) => new Option(`${names.of(code)} (${code})`, code)));
  const kept = sessionStorage.getItem("language") ?? navigator.language.split("-")[0];
  $("language").value = known.includes(kept) ? kept : known.includes("en") ? "en" : known[0] ?? "";
  $("language").closest("label").hidden = !known.length;
  $("columns").textContent = `Columns: ${Object.entries(columns).map(([name, kind]) => `${name} (${kind})`).join(", ")}`;
  const asked = new URL(location.href).searchParams.get("q");
  if (asked) { $("text").value = asked; submit(); } else say("Type what to look for, in any language, or drop an image here.");
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("file").addEventListener("change", () => { takeFile($("file").files[0]); $("file").value = ""; });
$("pick").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); } });
$("drop-image").addEventListener("click", () => { clearImage(); if ($("text").value.trim()) submit(); $("text").focus(); });
$("weight").addEventListener("change", submit);
$("more").addEventListener("click", () => run(state.ask, state.title, true));
$("language").addEventListener("change", () => {
  sessionStorage.setItem("language", $("language").value);
  $("results").replaceChildren(...state.hits.map(tile));
});
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); start(); });
$("look-form").addEventListener("submit", (event) => { event.preventDefault(); read(); });
for (const select of [$("layer"), $("head")]) select.addEventListener("change", () => light(state.pinned ?? 0));
let inside = 0;
addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) { inside++; $("hint").hidden = false; } });
addEventListener("dragleave", () => { inside = Math.max(0, inside - 1); $("hint").hidden = inside === 0; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); inside = 0; $("hint").hidden = true; takeFile(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => { const file = event.clipboardData?.files[0]; if (file) takeFile(file); });
start();
