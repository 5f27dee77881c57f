// The primitives of activation formulas in double precision, each stable where a naive form overflows or cancels.
// LOG_ERFCX: Chebyshev coefficients, written in by nonlin.functions.javascript.

/** exp(-x^2 / 2); the square is split, since its rounding would cost the tail its digits. */
function gauss(x) {
  const a = Math.min(Math.abs(x), 40), high = Math.fround(a);
  return Math.exp(-0.5 * high * high) * Math.exp(-0.5 * (a - high) * (a + high));
}

/** exp(x^2) erfc(x) for x >= 0: t exp(a polynomial in t), with t = 2 / (2 + x). */
function erfcx(x) {
  const t = 2 / (2 + x), y = 4 * t - 2;
  let b = 0, c = 0;
  for (let k = LOG_ERFCX.length - 1; k > 0; k--) [b, c] = [y * b - c + LOG_ERFCX[k], b];
  return t * Math.exp(0.5 * (y * b + LOG_ERFCX[0]) - c);
}

function Phi(x) {
  if (Number.isNaN(x)) return NaN;
  const tail = 0.5 * erfcx(Math.abs(x) * Math.SQRT1_2) * gauss(x);
  return x > 0 ? 1 - tail : tail;
}

/** The error function; near 0 by the series whose terms are all of one sign. */
function erf(x) {
  const a = Math.abs(x);
  if (!(a < 1)) return Number.isNaN(x) ? NaN : Math.sign(x) * (1 - erfcx(a) * Math.exp(-a * a));
  let term = x, sum = x;
  for (let n = 1; n < 30; n++) {
    term *= 2 * x * x / (2 * n + 1);
    sum += term;
  }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

function sigmoid(x) {
  const z = Math.exp(-Math.abs(x));
  return (x < 0 ? z : 1) / (1 + z);
}

const phi = (x) => gauss(x) / Math.sqrt(2 * Math.PI);
const cauchy = (x) => Math.atan2(1, -x) / Math.PI;
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const step = (x) => (x > 0 ? 1 : x <= 0 ? 0 : NaN);
const nonnegative = (x) => (x >= 0 ? 1 : x < 0 ? 0 : NaN);
const sign = (x) => Math.sign(x);
const {tanh, exp, expm1, log1p, atan, abs, max, min, sqrt, pow} = Math;

/** The value, or 0 where 0 x infinity made a nan that no input brought. */
const mended = (value, ...inputs) => (Number.isNaN(value) && !inputs.some(Number.isNaN) ? 0 : value);
