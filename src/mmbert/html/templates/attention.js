// The head view and the model view of an attention page, after BertViz (Vig, 2019): who looks at whom, as lines.
// The page brings the weights with it; nothing is loaded.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const { names, tokens, boxes, layers, heads, layer, head, weights: packed } = JSON.parse($("attention").textContent);
  const count = names.length;
  const weights = new Uint16Array(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer);
  const weight = (l, h, i, j) => weights[((l * heads + h) * count + i) * count + j] / 65535;
  const colour = (h, share = 100) => `color-mix(in srgb, hsl(${(360 * h) / heads + 210} 75% 52%) ${share}%, transparent)`;
  const percent = (value) => `${(100 * value).toFixed(value > 0.1 ? 0 : 1)} %`;

  const words = [0, tokens], regions = [tokens, tokens + boxes.length], all = [0, count];
  const kinds = {
    "everything": [all, all], "words to words": [words, words], "words to regions": [words, regions],
    "regions to words": [regions, words], "regions to regions": [regions, regions],
  };
  const ROW = 22, LEAST = 0.004;
  const state = { layer: layer ?? 0, on: new Set(head === null ? Array.from({ length: heads }, (_, h) => h) : [head]),
                  kind: "everything", focus: null, pinned: false };

  function make(tag, values = {}, ...children) {
    const element = Object.assign(document.createElement(tag), values);
    element.append(...children);
    return element;
  }

  // Lines of some heads on a canvas of so many CSS pixels; with a focus, those from or to one position alone.
  function drawLines(canvas, width, height, l, chosen, [from, to], focus, thickness) {
    const sharp = window.devicePixelRatio || 1;
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    pen.lineWidth = thickness;
    const left = height / Math.max(from[1] - from[0], to[1] - to[0]);
    const faint = focus ? 1 : 1 / Math.sqrt(chosen.length);
    for (const h of chosen) {
      pen.strokeStyle = `hsl(${(360 * h) / heads + 210} 75% 52%)`;
      for (let i = from[0]; i < from[1]; i++) {
        if (focus?.side === "left" && i !== focus.index) continue;
        for (let j = to[0]; j < to[1]; j++) {
          if (focus?.side === "right" && j !== focus.index) continue;
          const value = weight(l, h, i, j);
          if (value < LEAST) continue;
          pen.globalAlpha = Math.min(1, value * faint);
          pen.beginPath();
          pen.moveTo(0, (i - from[0] + 0.5) * left);
          pen.lineTo(width, (j - to[0] + 0.5) * left);
          pen.stroke();
        }
      }
    }
  }

  function fill(list, side, [start, end]) {
    list.replaceChildren();
    for (let index = start; index < end; index++) {
      const item = make("li", { tabIndex: 0, dir: "auto", textContent: names[index], title: names[index] });
      item.setAttribute("role", "button");
      item.dataset.index = index;
      const look = (pin) => () => {
        if (state.pinned && !pin) return;
        state.pinned = pin && !(state.pinned && state.focus?.side === side && state.focus.index === index);
        state.focus = { side, index };
        drawHead();
      };
      item.addEventListener("pointerenter", look(false));
      item.addEventListener("focus", look(false));
      item.addEventListener("click", look(true));
      item.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        look(true)();
      });
      list.append(item);
    }
  }

  // What the position in focus looks at (or is looked at by), one weight for each head that is on.
  const seen = (other) => [...state.on].map((h) => (state.focus.side === "left"
    ? weight(state.layer, h, state.focus.index, other) : weight(state.layer, h, other, state.focus.index)));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

  function drawHead() {
    const [from, to] = kinds[state.kind], canvas = $("lines"), chosen = [...state.on];
    const rows = Math.max(from[1] - from[0], to[1] - to[0]);
    drawLines(canvas, canvas.clientWidth, rows * ROW, state.layer, chosen, [from, to], state.focus, 1.6);
    canvas.style.height = `${rows * ROW}px`;
    for (const side of ["left", "right"]) {
      for (const item of $(side).children) {
        const index = Number(item.dataset.index), own = state.focus?.side === side;
        item.classList.toggle("here", own && state.focus.index === index);
        item.setAttribute("aria-pressed", Boolean(state.pinned && own && state.focus.index === index));
        item.style.background = "";
        if (!state.focus || own || !chosen.length) continue;
        const stops = seen(index).map((value, k) => {
          const painted = colour(chosen[k], Math.round(100 * value));
          return `${painted} ${(100 * k) / chosen.length}% ${(100 * (k + 1)) / chosen.length}%`;
        });
        item.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      }
    }
    light();
    tell();
  }

  // Regions of the image as bright as the position in focus looks at them; its own is framed.
  function light() {
    const values = boxes.map((_, i) => (state.focus && i ? mean(seen(tokens + i)) : 0));
    const most = Math.max(...values, 1e-9);
    [...$("regions").children].forEach((box, k) => {
      box.setAttribute("fill-opacity", (0.75 * values[k + 1]) / most);
      box.classList.toggle("own", state.focus?.index === tokens + k + 1);
    });
    $("picture").classList.toggle("lit", Boolean(state.focus));
  }

  function tell() {
    const focus = state.focus;
    if (!focus) { $("told").textContent = "Point at a word or region, or move to it with the Tab key; a click or Enter holds it."; return; }
    const [from, to] = kinds[state.kind], [start, end] = focus.side === "left" ? to : from;
    const found = [];
    for (let i = start; i < end; i++) found.push([mean(seen(i)), names[i]]);
    found.sort((a, b) => b[0] - a[0]);
    const best = found.slice(0, 4).map(([value, name]) => `\u2068${name}\u2069 ${percent(value)}`).join(", ");
    const does = focus.side === "left" ? "looks at" : "is looked at by";
    $("told").textContent = `\u2068${names[focus.index]}\u2069 ${does} ${best}${state.pinned ? " (held)" : ""}`;
  }

  function drawModel() {
    for (const canvas of document.querySelectorAll("#grid canvas")) {
      const { layer: l, head: h } = canvas.dataset;
      drawLines(canvas, canvas.clientWidth, canvas.clientHeight, Number(l), [Number(h)], kinds[state.kind], null, 1);
    }
  }

  function refresh() {
    $("layer").value = state.layer;
    for (const button of $("heads").children) {
      const h = Number(button.dataset.head);
      button.setAttribute("aria-pressed", state.on.has(h));
      button.style.background = state.on.has(h) ? colour(h) : colour(h, 18);
    }
    for (const button of document.querySelectorAll("#grid button")) {
      const { layer: l, head: h } = button.firstChild.dataset;
      button.classList.toggle("here", Number(l) === state.layer && state.on.has(Number(h)));
    }
    drawHead();
  }

  function refill() {
    const [from, to] = kinds[state.kind];
    state.focus = null;
    state.pinned = false;
    fill($("left"), "left", from);
    fill($("right"), "right", to);
  }

  function build() {
    for (let l = 0; l < layers; l++) $("layer").append(make("option", { value: l, textContent: l }));
    for (const kind of Object.keys(kinds)) $("kind").append(make("option", { value: kind, textContent: kind }));
    $("grid").style.gridTemplateColumns = `auto repeat(${heads}, minmax(44px, 1fr))`;
    $("grid").append(make("span"));
    for (let h = 0; h < heads; h++) {
      const button = make("button", { type: "button", textContent: h, title: `head ${h}` });
      button.dataset.head = h;
      button.addEventListener("click", () => { state.on.delete(h) || state.on.add(h); refresh(); });
      button.addEventListener("dblclick", () => { state.on = new Set([h]); refresh(); });
      $("heads").append(button);
      $("grid").append(make("span", { textContent: h, className: "muted" }));
    }
    for (let l = 0; l < layers; l++) {
      $("grid").append(make("span", { textContent: l, className: "muted" }));
      for (let h = 0; h < heads; h++) {
        const canvas = make("canvas"), button = make("button", { type: "button", title: `layer ${l}, head ${h}` }, canvas);
        button.setAttribute("aria-label", `layer ${l}, head ${h}`);
        Object.assign(canvas.dataset, { layer: l, head: h });
        button.addEventListener("click", () => {
          state.layer = l;
          state.on = new Set([h]);
          refresh();
          $("head-view").scrollIntoView({ block: "start", behavior: "smooth" });
        });
        $("grid").append(button);
      }
    }
    $("layer").addEventListener("change", () => { state.layer = Number($("layer").value); refresh(); });
    $("kind").addEventListener("change", () => { state.kind = $("kind").value; refill(); refresh(); drawModel(); });
    $("every").addEventListener("click", () => {
      state.on = new Set(Array.from({ length: heads }, (_, h) => h));
      refresh();
    });
    $("links").addEventListener("pointerleave", () => {
      if (state.pinned) return;
      state.focus = null;
      drawHead();
    });
    window.addEventListener("resize", () => { drawHead(); drawModel(); });
  }

  $("views").hidden = false;
  build();
  refill();
  refresh();
  drawModel();
})();
