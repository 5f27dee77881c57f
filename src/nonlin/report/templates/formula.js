// Formulas of nonlin.functions.grammar, read in the page: text to a tree, its derivative, its numbers. Nothing is evaluated
// as JavaScript. Before it, in the same scope: the primitives.

const ONE = {sigmoid, tanh, Phi, phi, erf, exp, expm1, log1p, softplus, atan, cauchy, step, nonnegative, sign, abs, sqrt};
const SHORT = {relu: (a) => call("max", a, num(0)), silu: (a) => mul(a, call("sigmoid", a)), gelu: (a) => mul(a, call("Phi", a)),
  square: (a) => raise(a, num(2)), clip: (a, low, high) => call("min", call("max", a, low), high)};
const ARITY = {max: 2, min: 2, clip: 3};
const TOKEN = /\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|[-+*/^(),]))/y;

const num = (n) => ({n});
const call = (f, ...a) => ({f, a});
const is = (t, n) => t.n === n;
const add = (a, b) => (is(a, 0) ? b : is(b, 0) ? a : "n" in a && "n" in b ? num(a.n + b.n) : {o: "+", a: [a, b]});
const neg = (a) => ("n" in a ? num(-a.n) : mul(num(-1), a));
function mul(a, b) {
  if (is(a, 0) || is(b, 0)) return num(0);
  if (is(a, 1)) return b;
  if (is(b, 1)) return a;
  if ("n" in a && "n" in b) return num(a.n * b.n);
  if ("n" in b) return mul(b, a);
  if ("n" in a && b.o === "*" && "n" in b.a[0]) return mul(num(a.n * b.a[0].n), b.a[1]);
  return {o: "*", a: [a, b]};
}
const divide = (a, b) => (is(a, 0) ? a : is(b, 1) ? a : "n" in a && "n" in b ? num(a.n / b.n) : {o: "/", a: [a, b]});
function raise(a, b) {
  if (!("n" in b)) throw new Error("the exponent must be a number");
  return b.n === 0 ? num(1) : b.n === 1 ? a : "n" in a ? num(a.n ** b.n) : {o: "**", a: [a, b]};
}

function parse(text) {
  if (text.length > 2000) throw new Error("at most 2000 characters");
  const tokens = [];
  TOKEN.lastIndex = 0;
  const end = text.trimEnd().length;
  while (TOKEN.lastIndex < end) {
    const from = TOKEN.lastIndex, found = TOKEN.exec(text);
    if (!found) throw new Error(`cannot read "${text.slice(from).trim()[0]}" at position ${from + 1}`);
    tokens.push({number: found[1], name: found[2], sign: found[3], at: TOKEN.lastIndex});
  }
  let index = 0, depth = 0;
  const peek = (...signs) => signs.includes(tokens[index]?.sign) ? tokens[index++].sign : null;
  const expect = (sign) => { if (!peek(sign)) throw new Error(`expected "${sign}" ${tokens[index] ? `before position ${tokens[index].at}` : "at the end"}`); };
  function sum() {
    let value = product(), sign;
    while ((sign = peek("+", "-"))) { const right = product(); value = add(value, sign === "+" ? right : neg(right)); }
    return value;
  }
  function product() {
    let value = unary(), sign;
    while ((sign = peek("*", "/"))) { const right = unary(); value = sign === "*" ? mul(value, right) : divide(value, right); }
    return value;
  }
  function unary() {
    if (++depth > 60) throw new Error("nested too deeply");
    const sign = peek("-", "+"), value = sign ? unary() : power();
    depth--;
    return sign === "-" ? neg(value) : value;
  }
  function power() {
    const base = atom();
    return peek("**", "^") ? raise(base, unary()) : base;
  }
  function atom() {
    const token = tokens[index++];
    if (token?.number) return num(Number(token.number));
    if (token?.name) return named(token.name);
    if (token?.sign === "(") { const inner = sum(); expect(")"); return inner; }
    throw new Error(token ? `a number, a variable or a function was expected before position ${token.at}` : "it ends too early");
  }
  function named(name) {
    if (["x", "gate", "up"].includes(name)) return {v: name};
    if (name === "pi") return num(Math.PI);
    const count = ARITY[name] ?? (name in ONE || name in SHORT ? 1 : 0);
    if (!count) throw new Error(`"${name}" is no function or variable; there are x, gate, up, pi, ${[...Object.keys(ONE), ...Object.keys(SHORT), "max", "min"].toSorted().join(", ")}`);
    expect("(");
    const args = [sum()];
    while (peek(",")) args.push(sum());
    expect(")");
    if (args.length !== count) throw new Error(`${name} takes ${count} argument${count > 1 ? "s" : ""}`);
    return SHORT[name] ? SHORT[name](...args) : name === "sqrt" ? raise(args[0], num(0.5)) : call(name, ...args);
  }
  if (!tokens.length) throw new Error("write a formula of x");
  const tree = sum();
  if (index < tokens.length) throw new Error(`something is too much before position ${tokens[index].at}`);
  const used = variables(tree);
  if (!used.size) throw new Error("it has no variable: write it with x, or with gate and up");
  if (used.has("x") && used.size > 1) throw new Error("x stands beside gate or up");
  return tree;
}

const variables = (t) => new Set("v" in t ? [t.v] : (t.a ?? []).flatMap((part) => [...variables(part)]));

const SLOPES = { // of one argument
  sigmoid: (u) => mul(call("sigmoid", u), call("sigmoid", neg(u))), Phi: (u) => call("phi", u), phi: (u) => mul(neg(u), call("phi", u)),
  tanh: (u) => mul(num(4), mul(call("sigmoid", mul(num(2), u)), call("sigmoid", mul(num(-2), u)))), exp: (u) => call("exp", u),
  expm1: (u) => call("exp", u), log1p: (u) => divide(num(1), add(num(1), u)), softplus: (u) => call("sigmoid", u),
  erf: (u) => mul(num(2 / Math.sqrt(Math.PI)), call("exp", neg(raise(u, num(2))))), atan: (u) => divide(num(1), add(num(1), raise(u, num(2)))),
  cauchy: (u) => divide(num(1 / Math.PI), add(num(1), raise(u, num(2)))), abs: (u) => call("sign", u),
  step: () => num(0), nonnegative: () => num(0), sign: () => num(0),
};

function derive(t, by) {
  if ("n" in t) return num(0);
  if ("v" in t) return num(t.v === by ? 1 : 0);
  const [a, b] = t.a, da = derive(a, by);
  if (t.o === "**") return mul(mul(b, raise(a, num(b.n - 1))), da);
  if (t.f && t.a.length === 1) return mul(SLOPES[t.f](a), da);
  const db = derive(b, by);
  if (t.o === "+") return add(da, db);
  if (t.o === "*") return add(mul(da, b), mul(a, db));
  if (t.o === "/") return add(divide(da, b), neg(divide(mul(a, db), raise(b, num(2)))));
  const first = call("step", add(t.f === "max" ? a : b, neg(t.f === "max" ? b : a))); // at a tie the second counts
  return add(mul(first, da), mul(add(num(1), neg(first)), db));
}

function value(t, at) {
  if ("n" in t) return t.n;
  if ("v" in t) return at[t.v];
  const [a, b] = t.a.map((part) => value(part, at));
  if (t.f) return t.a.length === 2 ? Math[t.f](a, b) : ONE[t.f](a);
  // 0 times infinity is 0, as in every backend
  return t.o === "+" ? a + b : t.o === "*" ? (a === 0 || b === 0 ? 0 : a * b) : t.o === "/" ? a / b : a ** b;
}

const LEVEL = {"+": 1, "*": 2, "/": 2, "**": 3};
function write(t, level = 0) {
  if ("n" in t) { const text = String(Number(t.n.toPrecision(6))); return t.n < 0 && level > 1 ? `(${text})` : text; }
  if ("v" in t) return t.v;
  if (t.f) return `${t.f}(${t.a.map((part) => write(part)).join(", ")})`;
  const own = LEVEL[t.o], [a, b] = t.a;
  let text;
  if (t.o === "*" && is(a, -1)) text = `-${write(b, 2)}`;
  else if (t.o === "+") { const right = write(b, 1); text = write(a, 1) + (right.startsWith("-") ? ` - ${right.slice(1)}` : ` + ${right}`); }
  else text = write(a, own + (t.o === "**" ? 1 : 0)) + (t.o === "**" ? "**" : t.o) + write(b, own + 1);
  return own < level || (text.startsWith("-") && level > 1) ? `(${text})` : text;
}

/** What the explorer needs of a formula: its functions, and its facts. */
function own(name, text) {
  const tree = parse(text), gated = !variables(tree).has("x"), names = gated ? ["gate", "up"] : ["x"], by = names[0];
  const slope = derive(tree, by), curvature = derive(slope, by), point = (args) => Object.fromEntries(names.map((n, i) => [n, args[i]]));
  const made = (t) => (...args) => value(t, point(args)), trees = {value: tree, slope, curvature, ...(gated ? {slope_up: derive(tree, "up")} : {})};
  return {
    functions: Object.fromEntries(Object.entries(trees).map(([key, t]) => [key, made(t)])),
    facts: {name, formula: text.trim(), kind: gated ? "gated" : "plain", variables: names, drawn: true, properties: null, parameters: [], used_by: [],
      aliases: [], source: "", note: "", mathml: "", slot: 12, derivatives: Object.fromEntries([[by, write(slope)], ...(gated ? [["up", write(trees.slope_up)]] : [])])},
  };
}
