// The page of `mmbert serve`: search, and more like this. Talks to /v1 alone and loads nothing from elsewhere.

import { canAsk, openAsk, prepareAsk } from "./ask.js";
import { look } from "./look.js";
import { $, ability, call, captionOf, counted, languageOptions, percent, picture, quoted, show, state } from "./service.js";
import { prepareTranslate } from "./translate.js";

const PAGE = 24;
const LONGEST = 1600;  // side in pixels of an image that is sent: more than models look at, less than the service refuses
const KINDS = { string: "text", int64: "whole number", double: "number", bool: "true or false" };  // of Arrow

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
  if (wrong) $("status").scrollIntoView({ block: "center" });  // "Show more" is far below it
}

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
  caption.textContent = caption.title = text;
  if (language && language !== "und") caption.lang = language;
  const name = item.querySelector(".name");
  name.textContent = name.title = hit.name;
  const like = item.querySelector(".like");
  like.setAttribute("aria-label", `More like ${text || hit.name}`);
  like.addEventListener("click", () => { clearImage(); $("text").value = ""; run({ like: hit.id }, `Images like ${quoted(text || hit.name)}`); });
  const inside = item.querySelector(".inside");
  inside.hidden = !ability("attention");
  inside.setAttribute("aria-label", `Look inside ${text || hit.name}`);
  inside.addEventListener("click", () => look(hit, state.ask.text ?? text));
  const ask = item.querySelector(".about");
  ask.hidden = !canAsk();
  ask.setAttribute("aria-label", `Ask about ${text || hit.name}`);
  ask.addEventListener("click", () => openAsk({ id: hit.id }, picture(hit.id, 640), text || hit.name));
  return item;
}

async function run(ask, title, more = false) {
  const turn = ++state.turn;
  state.ask = ask;
  if (!more) state.where = $("where").value.trim();
  const where = state.where;
  const offset = more ? state.hits.length : 0;
  say(more ? "Loading more…" : "Searching…");
  $("results").setAttribute("aria-busy", "true");
  try {
    const body = { ...ask, k: PAGE, offset, ...(where ? { where } : {}), ...(ask.text ? { rerank: state.about?.rerank ?? 0 } : {}) };
    const found = await (await call("v1/search", body)).json();
    if (turn !== state.turn) return;  // a later search was faster
    state.title = title;
    state.hits = more ? [...state.hits, ...found.hits] : found.hits;
    const tiles = found.hits.map(tile);
    if (more) $("results").append(...tiles); else { $("results").replaceChildren(...tiles); scrollTo(0, 0); }
    $("more").hidden = found.hits.length < PAGE || state.hits.length >= found.images;
    const told = where ? `${title}, filtered` : title;
    say(tiles.length || more ? `${told}: ${state.hits.length} of ${counted(found.images)}` : where ? `${told}: no image meets the filter` : `${told}: nothing found`);
    if (more && tiles.length) tiles[0].querySelector(".like").focus();
    else if (ask.like && document.activeElement === document.body) $("results").focus({ preventScroll: true });  // what was pressed is gone
  } catch (error) {
    if (turn !== state.turn) return;
    say(error.message, true);
    if (!more) { state.hits = []; $("results").replaceChildren(); $("more").hidden = true; }  // they answer something else
  } finally {
    $("results").removeAttribute("aria-busy");
  }
}

function submit() {
  const text = $("text").value.trim();
  if (!text && !state.image) {
    if (state.ask?.like) run(state.ask, state.title);  // with another filter
    else say("Type what to look for, or choose an image.");
    return;
  }
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
  $("asked-image").hidden = $("weight-label").hidden = $("ask-mine").hidden = true;
}

/** An image as a `data:` URL, made smaller where it is large, as a phone's photos are. */
function sendable(image, url) {
  const scale = LONGEST / Math.max(image.naturalWidth, image.naturalHeight);
  if (scale >= 1) return url;
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  canvas.width = Math.max(2, Math.round(scale * image.naturalWidth));
  canvas.height = Math.max(2, Math.round(scale * image.naturalHeight));
  pen.fillStyle = "#fff";  // below what is transparent, as in the service
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function takeFile(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onerror = () => say("The file cannot be read.", true);
  reader.onload = async () => {
    const tried = new Image();
    tried.src = reader.result;
    try { await tried.decode(); } catch { say("That file is no image that a browser shows (JPEG, PNG, WebP, GIF, BMP or AVIF).", true); return; }
    state.image = sendable(tried, reader.result);
    $("asked-image").querySelector("img").src = state.image;
    $("asked-image").hidden = false;
    $("ask-mine").hidden = !canAsk();
    submit();
  };
  reader.readAsDataURL(file);
}

// -- starting -----------------------------------------------------------------------------------------------------

let starts = 0;

async function start() {
  const turn = ++starts;
  let about;
  try {
    about = await (await call("v1")).json();
  } catch (error) {
    if (turn === starts) say(error.message, true);
    return;
  }
  if (turn !== starts) return;  // another key was typed
  state.about = about;
  if (!$("key-label").hidden) { $("key-label").hidden = true; $("text").focus(); }
  const { images, model, languages, columns } = state.about;
  $("about").textContent = `${counted(images)}${model ? `, model ${model}` : ""}`;
  const known = languages.filter((code) => code !== "und");
  $("language").replaceChildren(...languageOptions(known));
  const kept = sessionStorage.getItem("language") ?? navigator.language.split("-")[0];
  $("language").value = known.includes(kept) ? kept : known.includes("en") ? "en" : known[0] ?? "";
  $("language").closest("label").hidden = !known.length;
  $("columns").textContent = `Columns: ${Object.entries(columns).map(([name, kind]) => `${name} (${KINDS[kind] ?? kind})`).join(", ")}`;
  prepareAsk();
  prepareTranslate();
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
for (const kind of ["input", "change"]) $("where").addEventListener(kind, () => { $("filtered").hidden = !$("where").value.trim(); });
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value.trim()); start(); });
$("ask-mine").addEventListener("click", () => openAsk({ image: state.image }, state.image, "Your image"));
for (const image of document.querySelectorAll(".frame img")) {  // a tall one would reach below the window
  image.addEventListener("load", () => image.parentElement.style.setProperty("--aspect", image.naturalWidth / image.naturalHeight));
}
let inside = 0;
addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) { inside++; $("hint").hidden = false; } });
addEventListener("dragleave", () => { inside = Math.max(0, inside - 1); $("hint").hidden = inside === 0; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); inside = 0; $("hint").hidden = true; takeFile(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => { const file = event.clipboardData?.files[0]; if (file) takeFile(file); });
start();
