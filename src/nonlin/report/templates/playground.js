// Four things to play with: a gradient through depth, a unit that dies, boundaries of two layers, a gate. FUNCTIONS is before it.

const play = document.querySelector(".play");
if (play) {
  const $ = (selector) => play.querySelector(selector);
  const random = (seed) => () => { // mulberry32
    seed = (seed + 0x6D2B79F5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = (next) => () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  const apply = (name, order, x) => FUNCTIONS[name][order](x, ...BY_NAME[name].parameters.map((p) => p.initial));
  for (const list of play.querySelectorAll("select")) {
    const names = list.dataset.of.split(" ").filter((n) => FUNCTIONS[n]);
    list.append(...names.map((n) => element("option", {value: n}, n)));
    list.closest("article").hidden = !names.length;
  }
  const has = (id) => $(id).options.length > 0; // a page of a few activations may have none to play with
  const bind = (ids, draw) => { for (const id of ids) $(`#${id}`).addEventListener("input", draw); draw(); };
  // Drawings are made for the width that there is, so that their words are as large on a phone as on a desk.
  const wide = (svg) => Math.max(260, Math.min(736, $(svg).clientWidth || 700));
  const draw = (svg, tall, ...shapes) => {
    $(svg).setAttribute("viewBox", `0 0 ${wide(svg)} ${tall}`);
    $(svg).replaceChildren(...shapes);
  };
  const drawings = [];
  const redraw = () => { for (const one of drawings) one(); };

  // ---- a gradient through depth ----
  const WIDE = 32;
  function depth() {
    const layers = Number($("#p-depth").value), gain = Number($("#p-gain").value), name = $("#p-depth-of").value, next = normal(random(7));
    let x = Array.from({length: WIDE}, next);
    const passed = [];
    for (let l = 0; l < layers; l++) {
      const weights = x.map(() => x.map(() => gain * next() / Math.sqrt(WIDE)));
      const z = weights.map((row) => row.reduce((sum, w, i) => sum + w * x[i], 0));
      passed.push([weights, z]);
      x = z.map((v) => apply(name, "value", v));
    }
    let gradient = x.map(next);
    const size = (v) => Math.sqrt(v.reduce((sum, g) => sum + g * g, 0) / WIDE), sizes = [size(gradient)];
    for (const [weights, z] of passed.toReversed()) {
      const local = gradient.map((g, i) => g * apply(name, "slope", z[i]));
      gradient = x.map((_, i) => local.reduce((sum, g, j) => sum + g * weights[j][i], 0));
      sizes.unshift(size(gradient));
    }
    const ratio = sizes[0] / sizes.at(-1), left = 58, right = wide("#p-depth-svg") - 2, w = (right - left) / sizes.length;
    const place = (share) => Math.max(20, Math.min(178, 95 - 10 * Math.log10(Math.max(share, 1e-30))));
    const bars = sizes.map((s, i) => shape("rect", {x: left + i * w, y: place(s / sizes.at(-1)), width: Math.max(1, w - 1.5),
      height: 180 - place(s / sizes.at(-1)), style: `fill: var(--c${BY_NAME[name].slot})`}));
    const marks = [[1000, "× 1000"], [1, "same"], [1e-3, "1/1000"], [1e-6, "10⁻⁶"]].flatMap(([share, text]) => [
      shape("line", {x1: left, x2: right, y1: place(share), y2: place(share), class: "grid"}),
      shape("text", {x: left - 6, y: place(share) + 4, "text-anchor": "end"}, text)]);
    draw("#p-depth-svg", 205, ...marks, ...bars, shape("text", {x: left, y: 199}, "first layer"), shape("text", {x: right, y: 199, "text-anchor": "end"}, "last layer"));
    $("#p-depth + output").textContent = layers;
    $("#p-gain + output").textContent = number(gain, 3);
    $("#p-depth-said").textContent = `${layers} layers of ${name}, the weights’ gain ${number(gain, 3)}: the gradient arrives at the first layer with ` +
      `${number(ratio, 2)} times its size at the last. ${ratio < 1e-3 ? "It has vanished." : ratio > 1e3 ? "It explodes." : "It arrives."}`;
    play.dataset.ratio = ratio;
  }
  if (has("#p-depth-of")) { bind(["p-depth", "p-gain", "p-depth-of"], depth); drawings.push(depth); }

  // ---- a unit that dies ----
  const inputs = (() => { const next = normal(random(3)); return Array.from({length: 60}, next); })();
  let unit;
  const fresh = () => { unit = {w: 1, b: 0.5, steps: 0}; };
  function dying() {
    const name = $("#p-die-of").value, z = inputs.map((x) => unit.w * x + unit.b);
    const alive = z.filter((v) => apply(name, "value", v) !== 0 || apply(name, "slope", v) !== 0).length;
    const whole = wide("#p-die-svg"), px = (x) => 30 + (whole - 40) * (x + 3.2) / 6.4, py = (y) => 148 - 36 * y;
    const line = Array.from({length: 161}, (_, i) => -3.2 + 6.4 * i / 160).map((x, i) => `${i ? "L" : "M"}${px(x)} ${py(apply(name, "value", unit.w * x + unit.b))}`).join("");
    const rule = (y) => [shape("line", {x1: px(-3.2), x2: px(3.2), y1: py(y), y2: py(y), class: y ? "grid" : "zero"}),
      shape("text", {x: px(-3.2) - 6, y: py(y) + 4, "text-anchor": "end"}, number(y))];
    draw("#p-die-svg", 220, ...[-1, 0, 1, 2, 3].flatMap(rule), // what is above 3.8 leaves the drawing: the svg cuts it
      shape("path", {d: line, style: `stroke: var(--c${BY_NAME[name].slot})`}), shape("text", {x: px(3.2), y: py(-1) - 5, "text-anchor": "end"}, "taught: −1"),
      ...inputs.map((x, i) => shape("circle", {cx: px(x), cy: py(apply(name, "value", z[i])), r: 3.5, style: `fill: var(--c${BY_NAME[name].slot})`})),
      shape("text", {x: px(-3.2), y: 214}, "input −3.2"), shape("text", {x: px(3.2), y: 214, "text-anchor": "end"}, "3.2"));
    const moves = alive ? "" : " It is dead: every output is zero, so is every gradient, and no further step can move it.";
    $("#p-die-said").textContent = `${unit.steps} steps: the unit answers ${alive} of ${inputs.length} inputs.${moves}`;
    play.dataset.alive = alive;
  }
  $("#p-step").addEventListener("click", () => { // towards an output of −1, which ReLU cannot give
    const name = $("#p-die-of").value, rate = Number($("#p-rate").value);
    let dw = 0, db = 0;
    for (const x of inputs) {
      const z = unit.w * x + unit.b, g = 2 * (apply(name, "value", z) + 1) * apply(name, "slope", z) / inputs.length;
      dw += g * x;
      db += g;
    }
    unit = {w: unit.w - rate * dw, b: unit.b - rate * db, steps: unit.steps + 1};
    dying();
  });
  $("#p-again").addEventListener("click", () => { fresh(); dying(); });
  $("#p-die-of").addEventListener("input", () => { fresh(); dying(); });
  $("#p-rate").addEventListener("input", () => { $("#p-rate + output").textContent = $("#p-rate").value; });
  fresh();
  if (has("#p-die-of")) { dying(); drawings.push(dying); }

  // ---- boundaries of two layers ----
  const points = (() => {
    const next = random(11), made = [];
    for (let i = 0; i < 120; i++) {
      const inner = i % 2, r = inner ? 0.45 * Math.sqrt(next()) : 0.75 + 0.25 * next(), a = 2 * Math.PI * next();
      made.push([r * Math.cos(a), r * Math.sin(a), inner]);
    }
    return made;
  })();
  const UNITS = 8;
  function train(name, steps) {
    const next = normal(random(5)), f = (z) => (name ? apply(name, "value", z) : z), df = (z) => (name ? apply(name, "slope", z) : 1);
    const p = [...Array.from({length: 2 * UNITS}, next), ...Array(UNITS).fill(0), ...Array.from({length: UNITS}, () => next() / Math.sqrt(UNITS)), 0];
    const m = p.map(() => 0), v = p.map(() => 0), [B, V, C] = [2 * UNITS, 3 * UNITS, 4 * UNITS];
    const out = (x, y, z = []) => {
      let sum = p[C];
      for (let u = 0; u < UNITS; u++) { z[u] = p[2 * u] * x + p[2 * u + 1] * y + p[B + u]; sum += p[V + u] * f(z[u]); }
      return sum;
    };
    for (let s = 1; s <= steps; s++) {
      const g = p.map(() => 0);
      for (const [x, y, inner] of points) {
        const z = [], e = (1 / (1 + Math.exp(-out(x, y, z))) - inner) / points.length;
        g[C] += e;
        for (let u = 0; u < UNITS; u++) {
          const back = e * p[V + u] * df(z[u]);
          g[V + u] += e * f(z[u]);
          g[B + u] += back;
          g[2 * u] += back * x;
          g[2 * u + 1] += back * y;
        }
      }
      for (let i = 0; i < p.length; i++) { // Adam
        m[i] = 0.9 * m[i] + 0.1 * g[i];
        v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
        p[i] -= 0.05 * (m[i] / (1 - 0.9 ** s)) / (Math.sqrt(v[i] / (1 - 0.99 ** s)) + 1e-8);
      }
    }
    return out;
  }
  function picture(canvas, out) {
    const size = 240, image = new ImageData(size, size), ctx = canvas.getContext("2d"), [cold, paper, warm] = [rgb("--cold"), rgb("--card"), rgb("--warm")];
    for (let i = 0; i < size * size; i++) {
      const share = 2 / (1 + Math.exp(-out(2.4 * (i % size) / size - 1.2, 1.2 - 2.4 * Math.floor(i / size) / size))) - 1, end = share < 0 ? cold : warm;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = paper[c] + (end[c] - paper[c]) * Math.abs(share) * 0.6;
      image.data[4 * i + 3] = 255;
    }
    canvas.width = canvas.height = size;
    ctx.putImageData(image, 0, 0);
    ctx.fillStyle = getComputedStyle(play).color;
    for (const [x, y, inner] of points) {
      const [a, b] = [(x + 1.2) / 2.4 * size, (1.2 - y) / 2.4 * size];
      if (inner) ctx.fillRect(a - 3, b - 3, 6, 6);
      else { ctx.beginPath(); ctx.arc(a, b, 3, 0, 7); ctx.strokeStyle = ctx.fillStyle; ctx.lineWidth = 1.5; ctx.stroke(); }
    }
    return points.filter(([x, y, inner]) => (out(x, y) > 0) === !!inner).length / points.length;
  }
  function boundaries() {
    const name = $("#p-two-of").value, steps = Number($("#p-steps").value);
    $("#p-steps + output").textContent = steps;
    const without = picture($("#p-without"), train(null, steps)), withIt = picture($("#p-with"), train(name, steps));
    $("#p-two-said").textContent = `After ${steps} steps: without an activation ${number(100 * without, 3)} % of the points are on their side, whatever the ` +
      `weights: the boundary is a straight line. With ${name}: ${number(100 * withIt, 3)} %.`;
    Object.assign(play.dataset, {without, with: withIt});
  }
  if (has("#p-two-of")) {
    bind(["p-two-of", "p-steps"], boundaries);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", boundaries);
  }

  // ---- a gate ----
  function gate() {
    const g = Number($("#p-gate").value), up = Number($("#p-up").value), open = sigmoid(g), out = g * open * up, bar = (v) => 22 * v;
    $("#p-gate + output").textContent = number(g, 3);
    $("#p-up + output").textContent = number(up, 3);
    const all_ = wide("#p-gate-svg"), [from, door, to] = [0.2, 0.45, 0.72].map((share) => share * all_), size = Math.min(1, all_ / 600);
    const block = (x, v, fill) => shape("rect", {x: Math.min(x, x + size * bar(v)), y: 75, width: Math.abs(size * bar(v)), height: 30, style: `fill: var(--${fill})`});
    draw("#p-gate-svg", 200, shape("rect", {x: door - 5, y: 20, width: 10, height: 60 * (1 - open), class: "door"}),
      shape("rect", {x: door - 5, y: 100 + 60 * open, width: 10, height: 60 * (1 - open), class: "door"}),
      block(from, up, "c0"), block(to, out / 4, "c5"),
      shape("text", {x: from, y: 130, "text-anchor": "middle"}, `up ${number(up, 3)}`), shape("text", {x: door, y: 190, "text-anchor": "middle"}, `open ${number(100 * open, 2)} %`),
      shape("text", {x: to, y: 130, "text-anchor": "middle"}, `output ${number(out, 3)}`));
    $("#p-gate-said").textContent = `SwiGLU: SiLU(gate) × up = ${number(g, 3)} × ${number(open, 3)} × ${number(up, 3)} = ${number(out, 3)}. ` +
      (open < 0.1 ? "The gate is shut: whatever up is, hardly anything passes." : open > 0.9 ? "The gate is open: up passes, times the gate." : "The gate stands ajar.");
    play.dataset.out = out;
  }
  bind(["p-gate", "p-up"], gate);
  drawings.push(gate);
  let room = play.clientWidth;
  new ResizeObserver(() => {
    if (play.clientWidth === room) return;
    room = play.clientWidth;
    redraw();
  }).observe(play);
}
