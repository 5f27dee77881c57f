// The marks of a drawing: lines, boxes, areas, grids, words at places of the data, drawn on uPlot's canvas; and the mark under
// the pointer in words.

const SHAPES = {o: 0, ".": 0, D: 4, d: 4, s: 4.5, "^": 3, v: 3.5, "<": 3.25, ">": 3.75, p: 5, h: 6, H: 6, P: 8, X: 8.5, "*": 10};
const inkOf = (mark) => (mark.slot != null ? css(`--c${mark.slot}`) : mark.role ? css(mark.role) : mark.colour);
const shownMarks = (panel) => panel.marks.filter((mark) => !off.has(mark.arm || null));

function shape(ctx, kind, x, y, size, open) {
  const radius = size / 2, corners = SHAPES[kind];
  ctx.beginPath();
  if (kind === "_") { ctx.moveTo(x - radius, y); ctx.lineTo(x + radius, y); ctx.stroke(); return; }
  if (!corners) ctx.arc(x, y, kind === "." ? radius * 0.6 : radius, 0, 2 * Math.PI);
  else {
    const count = Math.floor(corners), star = count > 6, turn = kind === "v" ? Math.PI : kind === "<" ? -Math.PI / 2 : kind === ">" ? Math.PI / 2
      : kind === "s" || kind === "X" ? Math.PI / count : 0;
    for (let k = 0; k < count; k++) {
      const angle = turn + (2 * Math.PI * k) / count, far = radius * (star && k % 2 ? 0.45 : 1.12);
      ctx.lineTo(x + far * Math.sin(angle), y - far * Math.cos(angle));
    }
    ctx.closePath();
  }
  ctx.fill();
  if (open) ctx.stroke();
}

/** Draw what lies behind the marks: bands and lines across the whole panel. */
function drawRules(u, panel) {
  const {ctx, bbox: {left, top, width, height}} = u;
  for (const rule of panel.rules) {
    const places = rule[rule.at].map((v) => u.valToPos(v, rule.at, true));
    ctx.globalAlpha = rule.alpha ?? 1;
    ctx.fillStyle = ctx.strokeStyle = inkOf(rule);
    if (rule.kind === "box") {
      const [a, b] = [Math.min(...places), Math.max(...places)];
      rule.at === "x" ? ctx.fillRect(a, top, b - a, height) : ctx.fillRect(left, a, width, b - a);
    } else {
      ctx.lineWidth = (rule.wide || 1) * devicePixelRatio;
      ctx.setLineDash(rule.dash ? [5 * devicePixelRatio, 4 * devicePixelRatio] : []);
      ctx.beginPath();
      rule.at === "x" ? (ctx.moveTo(places[0], top), ctx.lineTo(places[0], top + height)) : (ctx.moveTo(left, places[0]), ctx.lineTo(left + width, places[0]));
      ctx.stroke();
    }
  }
  ctx.globalAlpha = 1;
  ctx.setLineDash([]);
}

/** Draw the lines and what is shaded, or the markers whose places are in sight. */
function drawMarks(u, panel, markers) {
  const {ctx, bbox: {left, top, width, height}} = u, ratio = devicePixelRatio, px = (v) => u.valToPos(v, "x", true), py = (v) => u.valToPos(v, "y", true);
  for (const mark of shownMarks(panel)) {
    ctx.globalAlpha = mark.alpha ?? 1;
    ctx.fillStyle = ctx.strokeStyle = inkOf(mark);
    const x = mark.x.map((v) => (v == null ? null : px(v))), y = mark.y.map((v) => (v == null ? null : py(v)));
    if (markers) {
      if (!mark.marker) continue;
      ctx.lineWidth = 1.5 * ratio;
      if (mark.open) ctx.fillStyle = "transparent";
      x.forEach((at, i) => {
        const seen = at != null && y[i] != null && at >= left - 1 && at <= left + width + 1 && y[i] >= top - 1 && y[i] <= top + height + 1;
        if (seen && i % mark.every === 0) shape(ctx, mark.marker, at, y[i], mark.size * 1.25 * ratio, mark.open);
      });
    } else if (mark.kind === "grid") {
      const wide = (x[1] - x[0]) / mark.shades[0].length, tall = (y[0] - y[1]) / mark.shades.length;
      mark.shades.forEach((row, i) => row.forEach((shade, j) => {
        ctx.globalAlpha = shade;
        ctx.fillRect(x[0] + j * wide, y[1] + i * tall, wide + 0.4, tall + 0.4);
      }));
    } else if (mark.kind === "box") {
      ctx.fillRect(Math.min(...x), Math.min(...y), Math.abs(x[1] - x[0]), Math.abs(y[1] - y[0]));
    } else if (mark.kind === "area" || mark.wide) {
      ctx.lineWidth = mark.wide * ratio;
      ctx.setLineDash(mark.dash ? [5 * ratio, 4 * ratio] : []);
      ctx.beginPath();
      let pen = false;
      x.forEach((at, i) => {
        if (at == null || y[i] == null) pen = false;
        else { pen ? ctx.lineTo(at, y[i]) : ctx.moveTo(at, y[i]); pen = true; }
      });
      mark.kind === "area" ? ctx.fill() : ctx.stroke();
      ctx.setLineDash([]);
    }
  }
  ctx.globalAlpha = 1;
}

/** Words with a rim of the page's colour, so that no line behind them makes them hard to read. */
function write(ctx, text, x, y, ink = css("--ink")) {
  ctx.save();
  ctx.setLineDash([]);
  ctx.lineJoin = "round";
  ctx.lineWidth = 4 * devicePixelRatio;
  ctx.strokeStyle = css("--paper");
  ctx.strokeText(text, x, y);
  ctx.fillStyle = ink;
  ctx.fillText(text, x, y);
  ctx.restore();
}

/** The words at marks that are in sight; those with no room at their right stand at their left. */
function drawWords(u, panel) {
  const {ctx, bbox} = u, ratio = devicePixelRatio, px = (v) => u.valToPos(v, "x", true), py = (v) => u.valToPos(v, "y", true);
  const within = (v, from, size) => v >= from - 1 && v <= from + size + 1;
  ctx.font = `${11.5 * ratio}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  for (const {x, y, text, by, align, above} of panel.texts) {
    if (!within(px(x), bbox.left, bbox.width) || !within(py(y), bbox.top, bbox.height)) continue;
    const from = px(x) + (align === "left" ? 4 + by[0] : by[0]) * 1.3 * ratio;
    const full = align === "left" && from + ctx.measureText(text).width > ctx.canvas.width;
    ctx.textAlign = full ? "right" : align;
    write(ctx, text, full ? px(x) - 6 * ratio : from, py(y) - ((by[1] ? by[1] + 3 : 0) + (above ? 7 : 0)) * 1.3 * ratio);
  }
}

/** The words at the right of named rows, where the screen has room. */
function drawBeside(u, panel) {
  if (!besideWidth(u.width, panel)) return;
  const {ctx, bbox: {left, width}} = u;
  ctx.fillStyle = css("--ink");
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  panel.y.names.forEach(([place], i) => {
    if (place >= Math.min(u.scales.y.min, u.scales.y.max) && place <= Math.max(u.scales.y.min, u.scales.y.max))
      ctx.fillText(panel.y.beside[i], left + width + 6 * devicePixelRatio, u.valToPos(place, "y", true));
  });
}
const besideWidth = (width, panel) => (panel.y.beside && width > 560 ? 12 + widest(panel.y.beside) : 0);
/** A row's name; where the right has no room for the words beside it, they stand below the name. */
const rowName = (width, panel, at) => panel.y.names[at][1] + (panel.y.beside && !besideWidth(width, panel) ? `\n${panel.y.beside[at]}` : "");

// ---- in words ----

const placeOf = (axis, v) => axis.names?.find(([place]) => place === v)?.[1] ?? null;
const value = (axis, v) => placeOf(axis, v) ?? FORMS[axis.format](v);
const isBar = (mark) => mark.kind === "line" && !mark.marker && mark.x.length === 2 && (mark.x[0] === mark.x[1] || mark.y[0] === mark.y[1]);
const isCurve = (mark) => mark.kind === "line" && mark.wide && mark.x.length > 1 && !isBar(mark);

const trueX = (mark, index) => (mark.true ?? mark.x)[index]; // a mark may be drawn beside its place

function wordsOf(panel, mark, index) {
  const {x, y} = panel, name = mark.label || mark.arm || "";
  if (mark.kind === "box") {
    const row = placeOf(y, (mark.y[0] + mark.y[1]) / 2), column = placeOf(x, (mark.x[0] + mark.x[1]) / 2);
    return row != null ? `${row}: ${FORMS[x.format](mark.x[1])}` : `${column ?? name}: ${FORMS[y.format](mark.y[1])}`;
  }
  const flat = mark.y[0] === mark.y.at(-1), range = (axis, v) => between((one) => value(axis, one), Math.min(...v), Math.max(...v));
  const row = placeOf(y, mark.y[index]), column = placeOf(x, trueX(mark, index));
  if (isBar(mark)) return flat ? `${row ?? name}: ${range(x, mark.x)}` : `${[name, value(x, trueX(mark, 0))].filter(Boolean).join(", ")}: ${range(y, mark.y)}`;
  if (row != null && y.names) return [row, name && name !== row ? name : null].filter(Boolean).join(", ") + `: ${FORMS[x.format](trueX(mark, index))}`;
  return `${[name && name !== column ? name : null, value(x, trueX(mark, index))].filter(Boolean).join(", ")}: ${value(y, mark.y[index])}`;
}

/** Every place that can be pointed at, from left to right: {mark, index, x, y}. */
function places(panel) {
  const found = [];
  for (const mark of shownMarks(panel)) {
    if (mark.kind === "area" || (mark.kind === "grid" && !mark.words)) continue;
    if (mark.kind === "grid") {
      const [left, right] = mark.x, [bottom, top] = mark.y, rows = mark.words.length, columns = mark.words[0].length;
      mark.words.forEach((row, i) => row.forEach((words, j) => found.push({mark, words, index: 0, x: left + ((j + 0.5) * (right - left)) / columns,
        y: top + ((i + 0.5) * (bottom - top)) / rows, inside: true})));
    } else if (mark.kind === "box") found.push({mark, index: 0, x: mark.x[1], y: (mark.y[0] + mark.y[1]) / 2, row: !!panel.y.names});
    else mark.x.forEach((x, index) => { if (x != null && mark.y[index] != null) found.push({mark, index, x, y: mark.y[index]}); });
  }
  return found.sort((a, b) => a.x - b.x || a.y - b.y);
}

/** What the pointer is nearest to, as [[mark, words, near]], with the place that they share. */
function pointedAt(u, panel) {
  const {left, top} = u.cursor;
  if (left == null || left < 0) return null;
  let best = null, least = Infinity;
  for (const place of places(panel)) {
    const across = place.row ? Math.max(0, left - u.valToPos(place.x, "x")) : left - u.valToPos(place.x, "x");
    const far = across ** 2 + (top - u.valToPos(place.y, "y")) ** 2;
    if (far < least) [best, least] = [place, far];
  }
  if (!best) return null;
  if (best.words) return {place: "", rows: [[best.mark, best.words, false]]};
  if (!isCurve(best.mark)) return {place: "", rows: [[best.mark, wordsOf(panel, best.mark, best.index), false]]};
  const rows = shownMarks(panel).filter(isCurve).map((mark) => [mark, mark.x.indexOf(best.x)]).filter(([mark, i]) => i >= 0 && mark.y[i] != null)
    .map(([mark, i]) => [mark, `${mark.label || mark.arm || ""} ${value(panel.y, mark.y[i])}`.trim(), mark === best.mark]);
  return {place: [panel.x.label, value(panel.x, best.x)].filter(Boolean).join(": "), rows};
}
