// The explorer. Before it, in the same scope: the primitives, and FUNCTIONS, generated from the definitions:
// {name: {value, slope, curvature[, slope_up]}}, each of (x or gate, up, parameters...).

const DATA = JSON.parse(document.getElementById("explorer-data").textContent);
const root = document.querySelector(".explorer");
const find = (selector, from = root) => from.querySelector(selector);
const all = (selector, from = root) => [...from.querySelectorAll(selector)];
const BY_NAME = Object.fromEntries(DATA.activations.map((a) => [a.name, a]));
const ORDERS = {value: "value", slope: "derivative", curvature: "second derivative"};
const POINTS = 480, MOST = 6;
const state = {
  selected: DATA.selected, compared: DATA.compared.filter((n) => BY_NAME[n]?.drawn && n !== DATA.selected).slice(0, MOST),
  reach: 5, x: 1, up: 1, parameters: {},
};
for (const a of DATA.activations) state.parameters[a.name] = a.parameters.map((p) => p.initial);

// ---- small helpers ----

const SVG = "http://www.w3.org/2000/svg";
function element(name, attributes = {}, text = null, space = null) {
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}
const shape = (name, attributes, text) => element(name, attributes, text, SVG);

function number(v, digits = 5) {
  if (!Number.isFinite(v)) return v > 0 ? "∞" : v < 0 ? "−∞" : "not a number";
  const small = v !== 0 && (Math.abs(v) < 1e-4 || Math.abs(v) >= 1e5);
  if (!small) return String(Number(v.toPrecision(digits))).replace("-", "−");
  const [front, power] = String(v.toExponential(Math.min(3, digits - 1))).replace("+", "").split("e");
  const raised = [...power].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  return `${Number(front) === 1 ? "" : `${front.replace("-", "−")} × `}10${raised}`;
}

function ticks(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough);
  const found = [];
  for (let k = Math.ceil(low / size); k * size <= high * (1 + 1e-12); k++) found.push(Number((k * size).toPrecision(6)));
  return found;
}

/** One number of an activation at x (its gate at x, where gated). */
function at(name, order, x, up = state.up) {
  const inputs = BY_NAME[name].variables.length === 2 ? [x, up] : [x];
  return FUNCTIONS[name][order](...inputs, ...state.parameters[name]);
}

const shown = () => (BY_NAME[state.selected].drawn ? [state.selected] : []).concat(state.compared);
const orders = () => all("[data-order]").filter((box) => box.checked).map((box) => box.dataset.order);
/** The palette's place of each activation shown: its own, or the first that nothing here has. */
function slots(names) {
  const taken = new Set(), found = {};
  for (const name of names) {
    let slot = BY_NAME[name].slot;
    if (slot > 13 && !names.some((n) => BY_NAME[n].slot === 13)) slot = 13; // of the palette while it lasts
    for (let k = 13; (slot > 13 || taken.has(slot)) && k >= 0; k--) if (!taken.has(k) && !names.some((n) => BY_NAME[n].slot === k)) slot = k;
    taken.add(slot);
    found[name] = slot;
  }
  return found;
}
const colour = (name, order) => {
  const names = shown();
  return names.length === 1 ? `var(--s${Object.keys(ORDERS).indexOf(order)})` : `var(--c${slots(names)[name]})`;
};

// ---- the plot ----

/** Points of a curve; a null where it jumps, so that no line is drawn over the jump. */
function sample(name, order) {
  const out = [];
  let before = null;
  for (let i = 0; i <= POINTS; i++) {
    const x = state.reach * (2 * i / POINTS - 1), y = at(name, order, x);
    if (before && jumps(name, order, before, [x, y])) out.push(null);
    out.push(before = [x, y]);
  }
  return out;
}

function jumps(name, order, left, right) {
  const gap = Math.abs(right[1] - left[1]);
  if (!(gap > 0.02 * state.reach)) return false;
  let [a, b] = [left, right];
  for (let k = 0; k < 20; k++) {
    const middle = (a[0] + b[0]) / 2, point = [middle, at(name, order, middle)];
    if (Math.abs(point[1] - a[1]) > Math.abs(b[1] - point[1])) b = point; else a = point;
  }
  return Math.abs(b[1] - a[1]) > gap / 2;
}

let view = null;

function layout(curves) {
  const box = find(".x-plot").getBoundingClientRect();
  const ys = curves.flatMap((c) => c.points.filter((p) => p && Number.isFinite(p[1])).map((p) => p[1]));
  let low = Math.max(Math.min(0, ...ys), -state.reach), high = Math.min(Math.max(0.5, ...ys), state.reach);
  const room = 0.06 * (high - low || 1);
  low -= room;
  high += room;
  const [left, right, top, bottom] = [44, 12, 8, 26];
  const width = Math.max(box.width, 200) - left - right, height = Math.max(box.height, 150) - top - bottom;
  return {
    low, high, left, top, width, height, box,
    px: (x) => left + (x + state.reach) / (2 * state.reach) * width,
    py: (y) => top + (high - Math.min(Math.max(y, low - (high - low)), high + (high - low))) / (high - low) * height,
    x: (px) => ((px - left) / width * 2 - 1) * state.reach,
  };
}

function drawPlot() {
  const svg = find(".x-plot svg"), curves = [];
  for (const name of shown().toReversed()) {
    for (const order of orders().toReversed()) curves.push({name, order, points: sample(name, order)});
  }
  for (const [i, c] of curves.entries()) { // one that lies under another is drawn wider, so that it shows
    c.under = curves.slice(i + 1).some((over) => over.order === c.order && over.points.filter((p, k) =>
      p && c.points[k] && Math.abs(p[1] - c.points[k][1]) < 0.004 * state.reach).length > POINTS / 2);
  }
  view = layout(curves);
  const {px, py, left, top, width, height, low, high} = view;
  svg.setAttribute("viewBox", `0 0 ${left + width + 12} ${top + height + 26}`);
  const clip = shape("clipPath", {id: "x-clip"});
  clip.append(shape("rect", {x: left, y: top, width, height}));
  const made = [clip];
  for (const x of ticks(-state.reach, state.reach, Math.min(10, width / 60))) {
    made.push(shape("line", {class: x ? "grid" : "zero", x1: px(x), x2: px(x), y1: top, y2: top + height}));
    made.push(shape("text", {x: px(x), y: top + height + 18, "text-anchor": "middle"}, number(x)));
  }
  for (const y of ticks(low, high, height / 46)) {
    made.push(shape("line", {class: y ? "grid" : "zero", x1: left, x2: left + width, y1: py(y), y2: py(y)}));
    made.push(shape("text", {x: left - 8, y: py(y) + 4, "text-anchor": "end"}, number(y)));
  }
  const group = shape("g", {"clip-path": "url(#x-clip)"});
  for (const c of curves) {
    let pen = "M";
    const d = c.points.map((p) => {
      if (!p || !Number.isFinite(p[1])) { pen = "M"; return ""; }
      const part = `${pen}${px(p[0]).toFixed(2)} ${py(p[1]).toFixed(2)}`;
      pen = "L";
      return part;
    }).join("");
    group.append(shape("path", {d, class: c.order, "data-curve": `${c.name}/${c.order}`, style: `stroke: ${colour(c.name, c.order)}${c.under ? "; stroke-width: 8; opacity: .6; stroke-dasharray: none" : ""}`}));
  }
  made.push(group, shape("g", {class: "x-cursor"}));
  svg.replaceChildren(...made);
  drawCursor();
}

function drawCursor() {
  const {px, py, top, height, low, high} = view, made = [];
  made.push(shape("line", {class: "cursor", x1: px(state.x), x2: px(state.x), y1: top, y2: top + height}));
  for (const name of shown()) {
    for (const order of orders()) {
      const y = at(name, order, state.x);
      if (y >= low && y <= high) made.push(shape("circle", {cx: px(state.x), cy: py(y), r: 4.5, style: `fill: ${colour(name, order)}`}));
    }
  }
  find(".x-cursor").replaceChildren(...made);
  const plot = find(".x-plot"), names = shown();
  const variable = names.every((n) => BY_NAME[n].variables.length === 2) ? "gate" : "x";
  plot.setAttribute("aria-valuemin", -state.reach);
  plot.setAttribute("aria-valuemax", state.reach);
  plot.setAttribute("aria-valuenow", Number(state.x.toFixed(4)));
  plot.setAttribute("aria-valuetext", `${variable} ${number(state.x, 4)}`);
  const up = names.some((n) => BY_NAME[n].variables.length === 2) ? `, up = ${number(state.up, 3)}` : "";
  fill(find(".x-readout table"), [`at ${variable} = ${number(state.x, 4)}${up}`, ...Object.values(ORDERS)],
    names.map((n) => [n, ...Object.keys(ORDERS).map((o) => number(at(n, o, state.x)))]));
  say(names.map((n) => `${n} ${number(at(n, "value", state.x), 4)}, derivative ${number(at(n, "slope", state.x), 4)}`).join("; "),
    `${variable} ${number(state.x, 4)}: `);
}

function fill(table, header, rows) {
  const row = element("tr");
  row.append(...header.map((text) => element("th", {scope: "col"}, text)));
  find("thead", table).replaceChildren(row);
  find("tbody", table).replaceChildren(...rows.map((cells) => {
    const made = element("tr");
    made.append(element("th", {scope: "row"}, cells[0]), ...cells.slice(1).map((c) => element("td", {}, c)));
    return made;
  }));
}

let speaking = 0;
/** Say it to a screen reader, once the hand rests. */
function say(text, before) {
  clearTimeout(speaking);
  speaking = setTimeout(() => { find("[aria-live]").textContent = before + text; }, 250);
}

function drawTable() {
  if (!find(".x-data").open) return;
  const names = shown(), kinds = orders(), rows = [];
  for (let i = -10; i <= 10; i++) {
    const x = state.reach * i / 10;
    rows.push([number(x, 4), ...names.flatMap((n) => kinds.map((o) => number(at(n, o, x))))]);
  }
  const header = names.flatMap((n) => kinds.map((o) => (o === "value" ? n : `${n}, ${ORDERS[o]}`)));
  fill(find(".x-data table"), [names.every((n) => BY_NAME[n].variables.length === 2) ? "gate" : "x", ...header], rows);
}

function drawLegend() {
  const names = shown();
  find(".x-main").classList.toggle("x-alone", names.length === 1);
  find(".x-legend").replaceChildren(...(names.length === 1 ? [] : names.map((name) => {
    const entry = element("span");
    entry.append(element("i", {style: `background: ${colour(name, "value")}`}), name);
    return entry;
  })));
}

// ---- the surface of a gated activation ----

function rgb(variable) {
  const text = getComputedStyle(root).getPropertyValue(variable).trim();
  return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
}

function drawSurface() {
  const a = BY_NAME[state.selected], gated = a.drawn && a.variables.length === 2;
  find(".x-surface").hidden = !gated;
  if (!gated) return;
  const size = 120, canvas = find(".x-map canvas"), grid = [];
  for (let row = 0; row <= size; row++) {
    const up = state.reach * (1 - 2 * row / size);
    grid.push(Array.from({length: size + 1}, (_, k) => at(a.name, "value", state.reach * (2 * k / size - 1), up)));
  }
  const most = Math.max(...grid.flat().filter(Number.isFinite).map(Math.abs)) || 1;
  const [cold, middle, warm] = [rgb("--cold"), rgb("--card"), rgb("--warm")];
  canvas.width = canvas.height = size + 1;
  const image = new ImageData(size + 1, size + 1);
  grid.flat().forEach((v, i) => {
    const share = Math.min(1, Math.abs(v) / most), end = v < 0 ? cold : warm;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = middle[c] + (end[c] - middle[c]) * share;
    image.data[4 * i + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  const levels = ticks(-most, most, 15), paths = levels.map((level) =>
    shape("path", {d: contour(grid, level || 1e-12 * most), class: level === 0 ? "zero" : ""}));
  find(".x-map svg").replaceChildren(...paths, shape("g", {class: "x-cross"}));
  for (const axis of all(".x-numbers")) {
    axis.replaceChildren(...[-1, -0.5, 0, 0.5, 1].map((part) => element("span", {}, number(part * state.reach, 3))));
  }
  const [left, right] = all(".x-scale span");
  left.textContent = number(-most, 3);
  right.textContent = number(most, 3);
  drawCross();
}

/** The line of one level through a square grid, by marching squares, in a box of 100 × 100. */
function contour(grid, level) {
  const n = grid.length - 1, unit = 100 / n, parts = [];
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) {
      const corners = [[c, r], [c + 1, r], [c + 1, r + 1], [c, r + 1]], cuts = [];
      for (let k = 0; k < 4; k++) {
        const [x0, y0] = corners[k], [x1, y1] = corners[(k + 1) % 4];
        const a = grid[y0][x0] - level, b = grid[y1][x1] - level;
        if ((a < 0) !== (b < 0)) cuts.push([x0 + (x1 - x0) * a / (a - b), y0 + (y1 - y0) * a / (a - b)]);
      }
      for (let k = 0; k + 1 < cuts.length; k += 2) {
        parts.push(`M${cuts[k].map((v) => (v * unit).toFixed(2)).join(" ")}L${cuts[k + 1].map((v) => (v * unit).toFixed(2)).join(" ")}`);
      }
    }
  }
  return parts.join("");
}

function drawCross() {
  const place = (v) => 50 * (1 + Math.max(-1, Math.min(1, v / state.reach))), x = place(state.x), y = 100 - place(state.up);
  find(".x-cross").replaceChildren(
    shape("line", {x1: x, x2: x, y1: 0, y2: 100}), shape("line", {x1: 0, x2: 100, y1: y, y2: y}), shape("circle", {cx: x, cy: y, r: 1.7}));
  const name = state.selected, by = (order) => number(at(name, order, state.x), 4);
  find(".x-at").textContent = `gate ${number(state.x, 3)}, up ${number(state.up, 3)}\nvalue ${by("value")}\n` +
    `derivative by gate ${by("slope")}\nderivative by up ${by("slope_up")}`;
}

// ---- the words ----

const end = (v, infinite) => (v === null ? infinite : number(v));
const interval = ([low, high]) => `${end(low, "−∞")} to ${end(high, "∞")}`;

function facts(a) {
  const p = a.properties, rows = [["formula", element("code", {}, a.formula)]];
  if (a.drawn) for (const [by, text] of Object.entries(a.derivatives)) rows.push([`derivative by ${by}`, element("code", {}, text)]);
  if (p) {
    const gate = a.kind === "gated" ? " (of its gate, up = 1)" : "";
    rows.push([`smoothness${gate}`, p.smoothness === "smooth" ? "smooth: every derivative exists" :
      p.smoothness === "discontinuous" ? "it jumps" : p.smoothness === "undefined" ? "it has no finite value at some x" :
        `${p.smoothness}: its ${["first", "second", "third", "fourth"][p.smoothness.slice(1)]} derivative is not continuous`]);
    rows.push(["monotonic", p.monotonic ? "yes" : "no"]);
    rows.push(["lowest point", p.minimum ? `${number(p.minimum[1], 6)} at ${number(p.minimum[0], 6)}` : "none"]);
    rows.push(["range", interval(p.range)]);
    rows.push(["no gradient", p.zero_gradient.map(interval).join(", ") || "nowhere on an interval"]);
    rows.push(["of a unit normal (inputs of mean 0 and variance 1)", `output: mean ${number(p.mean, 4)}, mean square ${number(p.second_moment, 4)}; ` +
      `derivative: mean ${number(p.derivative_mean, 4)}, mean square ${number(p.derivative_second_moment, 4)}`]);
  }
  for (const q of a.parameters) rows.push([`learned ${q.name}`, `starts at ${number(q.initial, 4)}; ${q.meaning}`]);
  if (a.used_by.length) rows.push(["used by", a.used_by.join(", ")]);
  if (a.source) rows.push(["source", source(a.source)]);
  if (a.aliases.length) rows.push(["also called", a.aliases.join(", ")]);
  if (a.note) rows.push(["note", a.note]);
  return rows;
}

function source(text) {
  const found = text.match(/arXiv:(\d{4}\.\d{4,5})/);
  return found ? element("a", {href: `https://arxiv.org/abs/${found[1]}`, rel: "noreferrer"}, text) : text;
}

function drawWords() {
  const a = BY_NAME[state.selected];
  find("#x-name").replaceChildren(a.name, element("small", {}, a.kind));
  if (a.mathml) find(".x-formula").innerHTML = a.mathml;
  else find(".x-formula").replaceChildren(element("code", {}, a.formula), element("br"),
    element("code", {class: "x-slope"}, `derivative: ${Object.values(a.derivatives)[0]}`));
  const list = find(".x-facts");
  list.replaceChildren(...facts(a).flatMap(([name, value]) => {
    const dd = element("dd");
    dd.append(value);
    return [element("dt", {}, name), dd];
  }));
  find(".x-absent").hidden = a.drawn;
  find(".x-drawing").hidden = shown().length === 0;
}

// ---- sliders ----

function slider(label, value, low, high, change, start) {
  const wrap = element("label"), input = element("input", {type: "range", min: low, max: high, step: 0.01, value});
  const output = element("output", {}, number(value, 3)), back = element("button", {type: "button", "aria-label": `${label} to its start`}, "start");
  const set = (v) => {
    input.value = v;
    output.textContent = number(v, 3);
    change(v);
    draw(false);
  };
  input.addEventListener("input", () => set(Number(input.value)));
  back.addEventListener("click", () => set(start));
  wrap.append(label, input, output, back);
  return wrap;
}

function drawSliders() {
  const made = [];
  if (shown().some((n) => BY_NAME[n].variables.length === 2)) {
    made.push(slider("up", state.up, -4, 4, (v) => { state.up = v; }, 1));
  }
  for (const name of shown()) {
    BY_NAME[name].parameters.forEach((q, i) => {
      made.push(slider(`${name}: ${q.name}`, state.parameters[name][i], q.initial - 2, q.initial + 2,
        (v) => { state.parameters[name][i] = v; }, q.initial));
    });
  }
  find(".x-parameters").replaceChildren(...made);
}

// ---- everything together ----

function draw(whole = true) {
  if (whole) {
    drawWords();
    drawSliders();
    drawLegend();
    for (const item of all(".x-list li")) {
      const name = item.dataset.name, here = name === state.selected, tick = find(".x-tick", item);
      find(".x-pick", item).setAttribute("aria-current", here);
      if (!tick) continue;
      tick.checked = here || state.compared.includes(name);
      tick.disabled = here || (!tick.checked && state.compared.length >= MOST);
      tick.style.accentColor = tick.checked && !here ? colour(name, "value") : "";
    }
    if (root.dataset.address) history.replaceState(null, "", "#" + [state.selected, ...state.compared].filter((n) => n !== "yours").join(","));
  }
  find(".x-reach").value = state.reach;
  find(".x-reach + output").textContent = `±${number(state.reach)}`;
  if (shown().length === 0) return;
  drawPlot();
  drawTable();
  drawSurface();
}

function select(name) {
  state.selected = name;
  state.compared = state.compared.filter((n) => n !== name);
  draw();
}

function move(x) {
  state.x = Math.max(-state.reach, Math.min(state.reach, x));
  drawCursor();
  if (!find(".x-surface").hidden) drawCross();
}

function keyed(event, sizes) {
  const way = sizes[event.key];
  if (way === undefined || event.ctrlKey || event.metaKey || event.altKey) return undefined;
  event.preventDefault();
  return way;
}

for (const item of all(".x-list li")) {
  const name = item.dataset.name;
  find(".x-pick", item).addEventListener("click", () => select(name));
  find(".x-tick", item)?.addEventListener("change", (event) => {
    state.compared = event.target.checked ? [...state.compared, name] : state.compared.filter((n) => n !== name);
    draw();
  });
}
find(".x-find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const item of all(".x-list li")) {
    const a = BY_NAME[item.dataset.name];
    item.hidden = ![a.name, a.formula, a.source, ...a.aliases, ...a.used_by].join(" ").toLowerCase().includes(wanted);
  }
});
// ---- the story, and one's own formula ----

const STORY = [
  [["sigmoid", "tanh"], "Sigmoid and tanh flatten on both sides: there the derivative, and with it the gradient, goes to zero."],
  [["relu", "tanh"], "ReLU keeps a derivative of one for everything above zero; below zero nothing passes, and nothing is learned."],
  [["gelu", "relu"], "GELU is a ReLU without the kink: it weighs each input by how often a normal variable lies below it."],
  [["silu", "gelu"], "SiLU does the same with the sigmoid. Both dip below zero before they rise."],
  [["swiglu", "silu"], "SwiGLU multiplies SiLU of one projection, the gate, with another, up: move up with its slider, or on the surface."]];
function show(names, words) {
  state.selected = names[0];
  state.compared = names.slice(1);
  find(".x-told").textContent = words;
  draw();
}
if (STORY.every(([names]) => names.every((n) => BY_NAME[n]))) {
  find(".x-story").hidden = false;
  find(".x-story span").append(...STORY.map(([names, words], i) => {
    const button = element("button", {type: "button"}, `${i + 1} ${names[0]}${i ? "" : ", tanh"}`);
    button.addEventListener("click", () => show(names, words));
    return button;
  }));
}
function ownFormula() {
  const text = find(".x-own").value, wrong = find(".x-wrong");
  wrong.textContent = "";
  if (!text.trim()) return;
  try {
    const made = own("yours", text), before = state.selected;
    FUNCTIONS.yours = made.functions;
    BY_NAME.yours = made.facts;
    state.parameters.yours = [];
    if (before !== "yours" && state.compared.length < MOST && BY_NAME[before].drawn) state.compared = [before, ...state.compared.filter((n) => n !== "yours")];
    state.selected = "yours";
    draw();
  } catch (error) {
    wrong.textContent = `Not yet a formula: ${error.message}.`;
  }
}
find(".x-own").addEventListener("input", ownFormula);
for (const box of all("[data-order]")) box.addEventListener("change", () => draw(false));
find(".x-reach").addEventListener("input", (event) => {
  state.reach = Number(event.target.value);
  state.x = Math.max(-state.reach, Math.min(state.reach, state.x));
  draw(false);
});
find(".x-data").addEventListener("toggle", drawTable);

const plot = find(".x-plot"), map = find(".x-map");
const point = (event) => move(view.x(event.clientX - plot.getBoundingClientRect().left));
plot.addEventListener("pointermove", point);
plot.addEventListener("pointerdown", point);
plot.addEventListener("keydown", (event) => {
  const fine = state.reach / 50, far = state.reach / 5, {x, reach} = state;
  const to = keyed(event, {ArrowRight: x + fine, ArrowUp: x + fine, ArrowLeft: x - fine, ArrowDown: x - fine,
    PageUp: x + far, PageDown: x - far, Home: -reach, End: reach});
  if (to !== undefined) move(Number(to.toFixed(6)));
});

function moveCross(gate, up) {
  const hold = (v) => Math.max(-state.reach, Math.min(state.reach, v));
  state.x = hold(gate);
  state.up = hold(up);
  drawSliders();
  drawPlot();
  drawTable();
  drawCross();
  say(find(".x-at").textContent, "");
}
const onMap = (event) => {
  const box = map.getBoundingClientRect(), part = (v, start, size) => 2 * (v - start) / size - 1;
  moveCross(state.reach * part(event.clientX, box.left, box.width), -state.reach * part(event.clientY, box.top, box.height));
};
map.addEventListener("pointerdown", onMap);
map.addEventListener("pointermove", (event) => { if (event.buttons) onMap(event); });
map.addEventListener("keydown", (event) => {
  const s = state.reach / 25;
  const by = keyed(event, {ArrowRight: [s, 0], ArrowLeft: [-s, 0], ArrowUp: [0, s], ArrowDown: [0, -s]});
  if (by) moveCross(state.x + by[0], state.up + by[1]);
});

function fromAddress() {
  const names = decodeURIComponent(location.hash.slice(1)).split(",").filter((n) => BY_NAME[n]);
  if (!root.dataset.address || !names.length) return;
  state.selected = names[0];
  state.compared = names.slice(1, 1 + MOST).filter((n) => BY_NAME[n].drawn && n !== names[0]);
}
addEventListener("hashchange", () => { fromAddress(); draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSurface);
new ResizeObserver(() => { if (shown().length) drawPlot(); }).observe(plot);

fromAddress();
draw();
// The list scrolls to what is chosen; the page stays where it is.
for (const item of all(".x-pick[aria-current=true]")) {
  const list = item.closest("ul"), row = item.parentElement;
  list.scrollTop = row.offsetTop - list.offsetTop - (list.clientHeight - row.clientHeight) / 2;
}
