// Figures that can be questioned, drawn by uPlot from the numbers beside them: values under the pointer, activations on
// and off, zoom. The static drawings stay in the page for paper, and where no script runs.

const DATA = JSON.parse(document.getElementById("figures-data").textContent);
const SLOT = Object.fromEntries(DATA.arms.map((arm) => [arm.name, arm.slot]));
const off = new Set(), plots = [], switches = [];

function make(name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const paint = (arm) => css(`--c${SLOT[arm]}`);

// ---- numbers ----

const minus = (text) => text.replaceAll("-", "−");
const short = (v, digits = 4) => String(Number(v.toPrecision(digits)));
const RAISED = {"−": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹"};
const raised = (text) => [...minus(text)].map((c) => RAISED[c] ?? c).join("");
const grouped = (text) => (/^-?\d{5,}$/.test(text) ? text.replace(/\B(?=(\d{3})+$)/g, ",") : text);
const FORMS = { // each with ``more`` digits than usual
  plain: (v, more = 0) => (v !== 0 && Math.abs(v) < 1e-4 ? FORMS.power(v, more) : minus(grouped(short(v, (Math.abs(v) >= 1e4 ? 6 : 4) + more)))),
  whole: (v) => (Number.isInteger(v) ? String(v) : ""),
  signed: (v, more = 0) => (v > 0 ? "+" : "") + minus(short(v, 3 + more)),
  percent: (v, more = 0) => minus(`${short(100 * v, 3 + more)} %`),
  power: (v, more = 0) => {
    if (v === 0) return "0";
    const [front, power] = v.toExponential(more || !v.toExponential(1).includes(".0") ? 1 + more : 0).split("e");
    return (front === "1" ? "" : `${minus(front)} × `) + `10${raised(power.replace("+", ""))}`;
  },
  log: (v, more = 0) => (Math.abs(v) >= 1e-3 && Math.abs(v) < 1e5 ? minus(short(v, 4 + more)) : FORMS.power(v, more)),
  decades: (v, more = 0) => FORMS.log(10 ** v, more),
  binary: (v, more = 0) => `2${raised(short(v, 3 + more))}`,
  tokens: (v, more = 0) => {
    const [size, unit] = Math.abs(v) >= 1e9 ? [1e9, " G"] : Math.abs(v) >= 1e6 ? [1e6, " M"] : Math.abs(v) >= 1e3 ? [1e3, " k"] : [1, ""];
    return short(v / size, 4 + more) + unit;
  },
};

/** An interval in words; that of equal runs has no width. */
const between = (form, low, high) => (Math.max(Math.abs(low), Math.abs(high)) < 1e-8 ? "exactly 0" : `${form(low)} … ${form(high)}`);

/** Labels of the ticks of a scale: with as many digits as it takes to make them differ. */
function labels(axis, places) {
  const said = (more) => places.map((v) => (v == null ? "" : FORMS[axis.format](v, more)));
  for (let more = 0; more < 9; more++) {
    const texts = said(more), shown = texts.filter(Boolean);
    if (new Set(shown).size === shown.length) return alike(texts, axis);
  }
  return said(9);
}

/** Labels of one axis with as many decimals each: 2.50 beside 2.48; a zero stays as it is, and so do powers of ten. */
function alike(texts, axis) {
  const parts = texts.map((text) => /^([+−]?\d+)(?:\.(\d+))?( [a-zA-Z%]+)?$/.exec(text));
  if (axis.log || parts.some((part, i) => !part && texts[i])) return texts;
  if (new Set(parts.filter((part) => part && part[1] !== "0").map((part) => part[3])).size > 1) return texts;
  const most = Math.max(0, ...parts.map((part) => part?.[2]?.length ?? 0));
  return parts.map((part, i) => (!part || !most || (part[1] === "0" && !part[2]) ? texts[i]
    : `${part[1]}.${(part[2] ?? "").padEnd(most, "0")}${part[3] ?? ""}`));
}

function linear(low, high, about) {
  const rough = (high - low) / Math.max(about, 2), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough * (1 - 1e-9)), found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(9)));
  return found;
}

/** Places of the ticks: at least two of them, whatever the window is. */
function ticks(axis, low, high, about) {
  if (!(high > low)) return [low];
  if (axis.rows) return axis.rows.map((_, i) => i);
  if (axis.names) {
    const inside = axis.names.map(([place]) => place).filter((t) => t >= low && t <= high);
    if (inside.length > 1 || axis.names.every(([place], i) => place === i)) return inside;
  }
  if (axis.ticks) {
    const inside = axis.ticks.filter((t) => t >= low && t <= high), every = Math.ceil(inside.length / about);
    if (inside.length >= 2) return inside.filter((_, i) => i % every === 0);
  }
  if (axis.log && low > 0) {
    for (const parts of [[1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) found.push(...parts.map((m) => m * 10 ** e));
      const inside = found.filter((t) => t >= low && t <= high);
      if (inside.length >= 2) return inside.length <= about ? inside : inside.filter((_, i) => i % Math.ceil(inside.length / about) === 0);
    }
  }
  for (let count = about; count < about + 12; count++) {
    const found = linear(low, high, count).filter((v) => axis.format !== "whole" || Number.isInteger(v));
    if (found.length >= 2) return found;
  }
  return [low, high];
}

// ---- one panel ----

function nearest(u, series, index) {
  const values = u.data[series];
  if (!values || values[index] != null) return index;
  for (let d = 1; d < values.length; d++) {
    if (values[index - d] != null) return index - d;
    if (values[index + d] != null) return index + d;
  }
  return index;
}

function rangeOf(axis) {
  return (_, low, high) => {
    if (low == null || high == null) return axis.range ?? (axis.log ? [0.1, 1] : [0, 1]);
    if (axis.log) return low < high ? [low / 1.08, high * 1.08] : [low / 2, high * 2];
    const room = 0.06 * (high - low) || Math.abs(low) * 0.05 || 0.5;
    return [low - room, Math.max(high + room, axis.least ?? -Infinity)];
  };
}

const FONT = "12px system-ui, sans-serif", paper = document.createElement("canvas").getContext("2d");
function widest(texts) {
  paper.font = FONT;
  return Math.max(...texts.map((text) => paper.measureText(text).width));
}

function axisOf(panel, vertical) {
  const axis = vertical ? panel.y : panel.x, names = axis.rows ?? axis.names?.map(([, name]) => name), longest = names ? widest(names) : 0;
  const turned = !vertical && names && longest * names.length > 280;
  const named = (u, v) => {
    if (axis.rows) return axis.rows[v] ?? "";
    const at = axis.names.findIndex(([place]) => place === v);
    return at < 0 ? FORMS[axis.format](v) : vertical ? rowName(u.width, panel, at) : axis.names[at][1];
  };
  return {
    stroke: () => css("--ink"), grid: {stroke: () => css("--grid"), width: 1, show: !axis.rows}, rotate: turned ? -35 : 0, ticks: {show: false},
    font: FONT, lineGap: 1.15,
    size: (u, texts) => (!vertical ? (turned ? 24 + 0.6 * longest : 30) : !names ? 58 : Math.max(40, 16 + longest, 16 + widest((texts ?? []).flatMap((text) => text.split("\n")).concat("")))),
    splits: (u, _, low, high) => ticks(axis, low, high, Math.max(2, Math.floor(vertical ? u.bbox.height / devicePixelRatio / 42 : u.bbox.width / devicePixelRatio / 76))),
    values: (u, places) => names ? places.map((v) => (v == null ? "" : named(u, v))) : labels(axis, places),
    space: 0, filter: (_, places) => places,
  };
}

function build(panel, host, figure) {
  const tables = panel.marks ? [[panel.x.range, [null, null]]] : [], series = panel.marks ? [{}, {}] : [{}], bands = [], lines = [];
  for (const line of panel.lines) {
    const at = series.length, colour = () => paint(line.arm);
    tables.push(line.low ? [line.x, line.y, line.low, line.high] : [line.x, line.y]);
    series.push({
      label: line.arm, stroke: () => colour() + (line.thin ? "59" : ""), width: line.thin ? 0.8 : 2.2, dash: line.dash, spanGaps: true,
      ...(line.joined ? {} : {paths: () => null}),
      points: {show: !!(line.points || line.faint), size: line.faint ? 5 : 8, width: 1.5, stroke: () => colour() + (line.faint ? "8c" : ""),
        fill: () => (line.faint ? colour() + "8c" : css("--paper"))},
    });
    lines.push({...line, at, all: [at]});
    if (line.low) {
      for (let k = 1; k < 3; k++) series.push({stroke: "transparent", width: 0, spanGaps: true, points: {show: false}});
      bands.push({series: [at + 2, at + 1], fill: () => colour() + "2b"});
      lines.at(-1).all.push(at + 1, at + 2);
    }
  }
  const area = make("div", {class: "f-area", tabindex: "0", role: "group",
    "aria-label": "Plot: the left and right arrow keys read it, plus and minus zoom, 0 shows everything"});
  const read = make("p", {class: "f-read"}), spoken = make("p", {class: "f-said", "aria-live": "polite"});
  const head = make("div", {class: "f-head"}), buttons = make("span", {class: "f-zoom"});
  head.append(make("p", {class: "f-title"}, panel.title ?? ""), buttons);
  host.append(head, area, make("p", {class: "f-x"}, panel.x.label), read, spoken);
  const state = {index: null}, main = lines.filter((l) => !l.thin && !(l.faint && !l.words));

  const marks = (u) => {
    const {ctx} = u, ratio = devicePixelRatio, px = (v) => u.valToPos(v, "x", true), py = (v) => u.valToPos(v, "y", true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top - 2, u.bbox.width, u.bbox.height + 4);
    ctx.clip();
    if (panel.marks) drawMarks(u, panel, false);
    for (const line of lines.filter((l) => !off.has(l.arm))) {
      ctx.strokeStyle = ctx.fillStyle = paint(line.arm);
      ctx.lineWidth = 2.6 * ratio;
      for (const [x0, y0, x1, y1] of line.bars ?? []) {
        ctx.beginPath();
        ctx.moveTo(px(x0), py(y0));
        ctx.lineTo(px(x1), py(y1));
        ctx.stroke();
      }
      if (line.diamond) {
        const [x, y] = line.diamond.map((v, i) => (i ? py(v) : px(v))), size = 6 * ratio, {left, width} = u.bbox;
        const beyond = x < left ? -1 : x > left + width ? 1 : 0, tip = beyond < 0 ? left : left + width;
        ctx.beginPath();
        if (beyond) [[tip, y], [tip - beyond * 14 * ratio, y - size], [tip - beyond * 14 * ratio, y + size]].forEach(([a, b]) => ctx.lineTo(a, b));
        else [[x, y - size], [x + size, y], [x, y + size], [x - size, y]].forEach(([a, b]) => ctx.lineTo(a, b));
        ctx.closePath();
        ctx.fill();
      }
      if (line.text) {
        ctx.font = `${12 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.textBaseline = "middle";
        write(ctx, line.text, u.bbox.left + 6 * ratio, py(line.diamond[1] + 0.33));
      }
    }
    ctx.restore();
    ctx.save(); // uPlot remembers what it set last: it must find it
    if (panel.marks) drawMarks(u, panel, true); // a marker at the panel's edge is whole
    if (panel.marks) drawWords(u, panel);
    drawBeside(u, panel);
    ctx.restore();
  };
  const ground = (u) => {
    const {ctx} = u;
    ctx.save();
    if (panel.rules) drawRules(u, panel);
    ctx.restore();
    if (!panel.span) return;
    const [which, low, high] = panel.span, {left, top, width, height} = u.bbox;
    const [a, b, zero] = [low, high, 0].map((v) => u.valToPos(v, which, true));
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.fillStyle = css("--muted") + "29";
    which === "x" ? ctx.fillRect(a, top, b - a, height) : ctx.fillRect(left, b, width, a - b);
    ctx.strokeStyle = css("--muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    which === "x" ? (ctx.moveTo(zero, top), ctx.lineTo(zero, top + height)) : (ctx.moveTo(left, zero), ctx.lineTo(left + width, zero));
    ctx.stroke();
    ctx.restore();
  };

  const stacked = () => panel.y.beside && !besideWidth(host.clientWidth, panel); // two lines a row
  const tall = () => panel.tall ? Math.max((stacked() ? 1.35 : 1) * panel.tall, 170) : (panel.y.rows ? 44 + 46 * panel.y.rows.length : innerWidth < 640 ? 250 : 300);
  const said = (line, u) => {
    const i = u.cursor.idxs?.[line.at], v = i == null ? null : u.data[line.at][i];
    if (v == null) return null;
    if (line.words) return line.words[line.x.indexOf(u.data[0][i])] ?? null;
    const form = FORMS[panel.y.format], [low, high] = line.low ? [u.data[line.at + 1][i], u.data[line.at + 2][i]] : [];
    return form(v) + (low == null ? "" : ` (${between(form, low, high)})`);
  };
  let speaking = 0;
  function tell(u) {
    const {idx} = u.cursor;
    const shown = idx == null ? [] : main.filter((l) => !off.has(l.arm)).map((l) => [l, said(l, u)]).filter(([, words]) => words);
    const pointed = panel.marks ? pointedAt(u, panel) : null;
    read.replaceChildren();
    if (!shown.length && !pointed) {
      read.append(make("span", {class: "f-hint"}, panel.both ? "Point at a mark for its numbers; drag over an area to enlarge it." :
        "Point at the figure for its numbers; drag across it to enlarge a part."));
      return;
    }
    const focus = u.series.findIndex((s, i) => i && s._focus);
    const place = pointed ? pointed.place : main.some((l) => l.words) ? "" : `${panel.x.label}: ${FORMS[panel.x.format](u.data[0][idx])}`;
    if (place) read.append(make("b", {}, place));
    const rows = pointed ? pointed.rows.map(([mark, words, near]) => [inkOf(mark), words, near]) :
      shown.map(([line, words]) => [`var(--c${SLOT[line.arm]})`, `${line.arm} ${words}`, focus === line.at]);
    for (const [colour, words, near] of rows) {
      const entry = make("span", near ? {class: "near"} : {});
      entry.append(make("i", {style: `background: ${colour}`}), words);
      read.append(entry);
    }
    clearTimeout(speaking);
    if (document.activeElement === area) speaking = setTimeout(() => { spoken.textContent = read.innerText; }, 300);
  }

  const u = new uPlot({
    width: Math.max(host.clientWidth, 240), height: tall(), legend: {show: false}, series, bands, padding: [8, () => Math.max(18, besideWidth(host.clientWidth, panel)), 0, 0],
    scales: {x: {time: false, distr: panel.x.log ? 3 : 1, dir: panel.x.down ? -1 : 1, range: (_, a, b) => [a, b]}, y: {distr: panel.y.log ? 3 : 1, dir: panel.y.down ? -1 : 1, range: rangeOf(panel.y)}},
    axes: [axisOf(panel, false), axisOf(panel, true)],
    cursor: {dataIdx: nearest, focus: {prox: 30}, drag: {x: true, y: !!panel.both, uni: 20, dist: 6},
      points: {size: 8}, bind: {dblclick: () => () => { reset(); return null; }}},
    focus: {alpha: 1},
    hooks: {draw: [marks], drawAxes: [ground], setCursor: [tell]},
  }, uPlot.join(tables), area);

  const whole = panel.x.range ?? [u.data[0][0], u.data[0].at(-1)];
  function window_(low, high) {
    u.batch(() => {
      u.setScale("x", {min: low, max: high});
      if (low === whole[0] && high === whole[1] && panel.y.range && !off.size) u.setScale("y", {min: panel.y.range[0], max: panel.y.range[1]});
    });
  }
  function reset() { window_(...whole); }
  function zoom(factor) {
    const {min, max} = u.scales.x, to = panel.x.log ? Math.log : (v) => v, from = panel.x.log ? Math.exp : (v) => v;
    const at = u.cursor.idx == null ? (to(min) + to(max)) / 2 : Math.min(Math.max(to(u.data[0][u.cursor.idx]), to(min)), to(max));
    window_(from(at + (to(min) - at) * factor), from(at + (to(max) - at) * factor));
  }
  let walked = -1;
  function walk(by, from = null) {
    const {x, y} = u.scales, inside = places(panel).filter((p) => p.x >= x.min && p.x <= x.max && p.y >= y.min && p.y <= y.max);
    if (!inside.length) return;
    walked = Math.min(Math.max((from ?? walked) + by, 0), inside.length - 1);
    u.setCursor({left: u.valToPos(inside[walked].x, "x"), top: u.valToPos(inside[walked].y, "y")});
    tell(u);
  }
  function step(by, from = null) {
    if (panel.marks) return walk(by, from);
    const xs = u.data[0], {min, max} = u.scales.x, inside = xs.map((_, i) => i).filter((i) => xs[i] >= min && xs[i] <= max);
    if (!inside.length) return;
    const here = from ?? inside.indexOf(u.cursor.idx), next = inside[here < 0 ? (by > 0 ? 0 : inside.length - 1) : Math.min(Math.max(here + by, 0), inside.length - 1)];
    u.setCursor({left: u.valToPos(xs[next], "x"), top: u.over.clientHeight / 2});
    tell(u);
  }
  area.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {ArrowRight: () => step(1), ArrowLeft: () => step(-1), PageDown: () => step(10), PageUp: () => step(-10), Home: () => step(0, 0),
      End: () => step(1e9, 0), "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), 0: reset}[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  for (const [sign, words, action] of [["+", "Enlarge", () => zoom(0.6)], ["−", "Make smaller", () => zoom(1 / 0.6)], ["whole", "Show everything", reset],
    ...(panel.views ?? []).map(([label, low, high]) => [label, label, () => window_(low, high)])]) {
    const button = make("button", {type: "button", "aria-label": words}, sign);
    button.addEventListener("click", action);
    buttons.append(button);
  }
  const plot = {u, reset, show() {
    u.batch(() => { for (const line of lines) for (const at of line.all) u.setSeries(at, {show: !off.has(line.arm)}); });
    u.redraw();
    tell(u);
  }};
  plots.push(plot);
  host.uplot = u; // for whoever inspects the page
  reset();
  tell(u);
  let width = host.clientWidth;
  new ResizeObserver(() => {
    if (host.clientWidth === width || !host.clientWidth) return;
    width = host.clientWidth;
    u.setSize({width, height: tall()});
  }).observe(host);
  return [...lines, ...(panel.marks ?? [])].map((l) => l.arm);
}

// ---- every figure of the page ----

function switched(arm) {
  off.has(arm) ? off.delete(arm) : off.add(arm);
  for (const one of switches) one.setAttribute("aria-pressed", !off.has(one.dataset.arm));
  for (const plot of plots) plot.show();
}

for (const figure of document.querySelectorAll("figure[data-figure]")) {
  const panels = DATA.figures[figure.dataset.figure];
  if (!panels) continue;
  const live = make("div", {class: "f-live"}), row = make("div", {class: "f-arms", role: "group", "aria-label": "Activations shown"});
  const grid = make("div", {class: "f-panels"});
  live.append(row, grid);
  figure.prepend(live);
  figure.classList.add("f-on");
  const seen = new Set();
  for (const panel of panels) {
    const host = make("div", {class: "f-panel"});
    grid.append(host);
    build(panel, host, figure).forEach((arm) => seen.add(arm));
  }
  const keys = make("div", {class: "f-keys"}), told = new Set();
  for (const key of panels.flatMap((panel) => panel.keys ?? [])) {
    if (told.has(key.label)) continue;
    told.add(key.label);
    const one = make("span"), sample = make("i", {class: key.as, style: `--of: ${key.slot != null ? `var(--c${key.slot})` :
      key.role ? `var(${key.role})` : key.colour}; --as: ${key.dash ? "dashed" : "solid"}; opacity: ${key.alpha ?? 1}`});
    one.append(sample, key.label);
    keys.append(one);
  }
  if (told.size) row.after(keys);
  const arms = DATA.arms.filter((arm) => seen.has(arm.name));
  for (const {name, slot} of arms.length > 1 ? arms : []) {
    const button = make("button", {type: "button", "aria-pressed": "true", "data-arm": name});
    button.append(make("i", {style: `background: var(--c${slot})`}), name);
    button.addEventListener("click", () => switched(name));
    switches.push(button);
    row.append(button);
  }
}

// ---- tables ----

/** A hint stands above the tables that are wider than their place, and no other. */
const looked = new ResizeObserver((seen) => requestAnimationFrame(() => {
  for (const {target} of seen) {
    const wide = target.scrollWidth > target.clientWidth + 1;
    target.classList.toggle("wide", wide);
    target.classList.toggle("fits", !wide);
  }
}));
for (const table of document.querySelectorAll(".scroll")) looked.observe(table);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const {u} of plots) u.redraw(false, true); });
