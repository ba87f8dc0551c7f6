// Asking about one image: describe it, answer a question, find a part. Only what the service can is shown.

import { $, ability, call, languageOptions, percent, placeOf, said, shape, show, state } from "./service.js";

const SHOWN = 3;  // boxes that are drawn
const asked = { source: null };
const SECTIONS = { caption: $("describe"), answer: $("question"), ground: $("find") };

/** Whether the service can answer anything about an image. */
export const canAsk = () => Object.keys(SECTIONS).some(ability);

/** Shows what the service can, once it has said so. */
export function prepareAsk() {
  for (const [name, section] of Object.entries(SECTIONS)) section.hidden = !ability(name);
  $("describe-language").replaceChildren(...languageOptions(ability("caption")?.languages ?? []));
}

/** Opens the dialog about an image: `source` is what /v1 asks for (`id` or `image`), `path` what is shown. */
export async function openAsk(source, path, name) {
  asked.source = source;
  draw(null);
  for (const section of Object.values(SECTIONS)) section.querySelector(".said").replaceChildren();
  $("about-picture").alt = name;
  $("about-name").textContent = name;
  const select = $("describe-language");
  if (!select.dataset.chosen) {
    const wanted = [$("language").value, "en"].find((code) => [...select.options].some((one) => one.value === code));
    if (wanted) select.value = wanted;
  }
  $("about-image").showModal();
  Object.values(SECTIONS).find((section) => !section.hidden)?.querySelector("input, select").focus();
  try {
    await show($("about-picture"), path);
  } catch (error) { $("about-name").textContent = error.message; }
}

/** Lets a section's form ask: `ask` gets the image and gives what was found, which `tell` makes elements of. */
function answering(section, ask, tell) {
  const place = section.querySelector(".said");
  let latest = 0;
  section.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const turn = ++latest, { source } = asked;
    const current = () => turn === latest && source === asked.source;  // nothing was asked since
    place.classList.remove("wrong");
    place.textContent = "Thinking…";
    try {
      const found = await ask(source);
      if (current()) place.replaceChildren(tell(found));
    } catch (error) {
      if (!current()) return;
      place.classList.add("wrong");
      place.textContent = error.message;
    }
  });
}

async function describe(source) {
  const to = $("describe-language").value;
  return { to, ...await (await call("v1/caption", { ...source, to: to || null })).json() };
}

function tellCaption({ to, captions: [{ text }] }) {
  return text ? said("p", text, { language: to, className: "main" }) : said("p", "The model wrote nothing.");
}

async function answer(source) {
  const question = $("question-text").value.trim();
  if (!question) throw new Error("Type a question.");
  return (await call("v1/answer", { ...source, question })).json();
}

function tellAnswers({ answers }) {
  return listed("bars", answers.map(({ answer: text, probability }) => {
    const bar = document.createElement("span");
    bar.className = "track";
    bar.setAttribute("aria-hidden", "true");
    bar.append(document.createElement("span"));
    bar.firstChild.style.inlineSize = `${100 * Math.min(1, probability)}%`;
    return [said("span", text), bar, said("span", percent(probability), { className: "figure" })];
  }));
}

async function find(source) {
  draw(null);
  const expression = $("find-text").value.trim();
  if (!expression) throw new Error("Type what to find.");
  return (await call("v1/ground", { ...source, expression, k: SHOWN })).json();
}

function tellParts(found) {
  const { width, height, best } = found;
  draw(found);
  $("about-picture").scrollIntoView({ block: "nearest" });
  return listed("parts", best.map(({ box: [left, top, right, bottom], score }, number) => {
    const button = document.createElement("button");
    button.type = "button";
    const place = placeOf([left / width, top / height, right / width, bottom / height]);
    button.append(
      said("span", number + 1, { className: "number" }),
      said("span", `${place}, `),
      said("span", percent(score), { className: "figure" }),
    );
    for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => point(number));
    for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => point(null));
    return [button];
  }));
}

/** An ordered list of rows of elements. */
function listed(className, rows) {
  const list = document.createElement("ol");
  list.className = className;
  list.append(...rows.map((row) => {
    const item = document.createElement("li");
    item.append(...row);
    return item;
  }));
  return list;
}

/** Draws boxes over the image, the best above the others; null: none. */
function draw(found) {
  const boxes = $("boxes");
  boxes.replaceChildren();
  if (!found) return;
  const { width, height, best } = found;
  boxes.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const unit = Math.max(width, height) / 20;
  boxes.append(...best.map(({ box: [x, y, right, bottom] }, number) => {
    const edges = { x, y, width: right - x, height: bottom - y };
    const group = shape("g", { class: number ? "box" : "box best" });
    group.append(
      shape("rect", { ...edges, class: "halo" }), shape("rect", { ...edges, class: "edge" }),
      shape("rect", { x, y, width: unit, height: unit, class: "label" }),
      shape("text", { x: x + unit / 2, y: y + unit / 2, "font-size": 0.75 * unit }, number + 1),
    );
    return group;
  }).reverse());
}

/** Lets one box stand out; null: none. */
function point(number) {
  const groups = [...$("boxes").children].reverse();
  groups.forEach((group, i) => {
    group.classList.toggle("pointed", i === number);
    group.classList.toggle("dim", number !== null && i !== number);
  });
}

answering($("describe"), describe, tellCaption);
answering($("question"), answer, tellAnswers);
answering($("find"), find, tellParts);
$("describe-language").addEventListener("change", (event) => { event.target.dataset.chosen = "yes"; });
