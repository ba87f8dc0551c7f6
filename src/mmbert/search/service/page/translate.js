// Translating text, where a model of the service can: a line is a text.

import { $, ability, call, languageOptions, said } from "./service.js";

const MOST_LINES = 64;  // of a request
let latest = 0;

/** Shows the button if the service translates. */
export function prepareTranslate() {
  const able = ability("translate");
  $("open-translate").hidden = !able;
  $("translate-language").replaceChildren(...languageOptions(able?.languages ?? []));
}

async function translate() {
  const place = $("translation"), to = $("translate-language").value, turn = ++latest;
  const texts = $("translate-text").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const tell = (text, wrong = false) => {
    place.classList.toggle("wrong", wrong);
    place.textContent = text;
  };
  if (!texts.length) { tell("Type a text.", true); return; }
  if (texts.length > MOST_LINES) { tell(`At most ${MOST_LINES} lines at a time.`, true); return; }
  tell("Translating…");
  try {
    const { translations } = await (await call("v1/translate", { texts, to: to || null })).json();
    if (turn === latest) place.replaceChildren(...translations.map(([best]) => said("p", best.text || "…", { language: to, className: "main" })));
  } catch (error) {
    if (turn === latest) tell(error.message, true);
  }
}

$("open-translate").addEventListener("click", () => { $("translate").showModal(); $("translate-text").focus(); });
$("translate-form").addEventListener("submit", (event) => { event.preventDefault(); translate(); });
