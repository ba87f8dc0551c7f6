// "Look inside": which regions of an image each word of a caption looks at.

import { $, call, captionOf, percent, picture, placeOf, quoted, shape, show } from "./service.js";

const seen = { hit: null, maps: null, pinned: null };
let turns = 0;

export async function look(hit, text) {
  seen.hit = hit;
  $("look-text").value = text;
  $("look-image").alt = captionOf(hit).text || hit.name;
  $("look").showModal();
  read();
  try {
    await show($("look-image"), picture(hit.id, 640));
  } catch (error) { $("look-image").alt = error.message; }
}

async function read() {
  const text = $("look-text").value.trim(), turn = ++turns;
  $("words").replaceChildren();
  $("look-match").textContent = "";
  seen.maps = null;
  light(null);
  if (!text) { $("look-said").textContent = "Type a caption."; return; }
  $("look-said").textContent = "Reading…";
  let maps;
  try {
    maps = await (await call("v1/attention", { text, id: seen.hit.id })).json();
  } catch (error) {
    if (turn === turns) $("look-said").textContent = error.message;
    return;
  }
  if (turn !== turns) return;  // something else is read now
  seen.maps = maps;
  $("look-said").textContent = "";
  const { match, layers, heads } = seen.maps;
  $("look-match").textContent = match === null ? "" : `Image and caption belong together: ${percent(match)}`;
  choices($("layer"), layers);
  choices($("head"), heads);
  seen.pinned = null;
  $("words").append(...seen.maps.words.map((word, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("pointerenter", () => light(number));
    button.addEventListener("focus", () => light(number));
    button.addEventListener("pointerleave", () => light(seen.pinned));
    button.addEventListener("blur", () => light(seen.pinned));
    button.addEventListener("click", () => pin(seen.pinned === number ? null : number));
    return button;
  }));
  if (seen.maps.words.length === 1) pin(0);
}

function pin(number) {
  seen.pinned = number;
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
  const { weights, boxes } = seen.maps;
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
  const lit = word !== null && seen.maps !== null;
  cells.parentElement.classList.toggle("lit", lit);
  if (!lit) return;
  const values = strengths(word);
  const parts = values.slice(1);  // region 0 is the whole image
  const low = Math.min(...parts), high = Math.max(...parts);
  seen.maps.boxes.slice(1).forEach(([left, top, right, bottom], i) => {
    const cell = shape("rect", { x: left, y: top, width: right - left, height: bottom - top });
    cell.setAttribute("fill-opacity", high > low ? (0.8 * (parts[i] - low)) / (high - low) : 0);
    cells.append(cell);
  });
  const best = parts.indexOf(high);
  const total = values.reduce((sum, value) => sum + value, 0);
  $("look-said").textContent = `${quoted(seen.maps.words[word])} looks most at ${placeOf(seen.maps.boxes[best + 1])} (${percent(high / total)} of its attention to the image; the image as a whole ${percent(values[0] / total)}).`;
}

$("look-form").addEventListener("submit", (event) => { event.preventDefault(); read(); });
for (const select of [$("layer"), $("head")]) select.addEventListener("change", () => light(seen.pinned ?? 0));
