const page = JSON.parse(document.getElementById("data").textContent);
const { cell, num_gates: GATES, last_gate_has_bias: hasBias, num_layers: L, hidden_size: H,
  vocabulary_size: V } = page.model;

// --- Weights, in the order in which `page_weights` in page.py packs them -------------------------

const binary = atob(page.weights);
const bytes = new Uint8Array(binary.length);
for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
let position = 0;

function readArray(Type, length) {
  const start = position;
  position += length * Type.BYTES_PER_ELEMENT;
  return new Type(bytes.slice(start, position).buffer);
}

/** IEEE 754 half precision: a sign, 5 bits of exponent, 10 of fraction. */
function halfToNumber(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
  return bits >> 15 ? -size : size;
}

/** Reads a matrix [rows, columns], padded with rows of zeros to a multiple of 4 for `times`. */
function readMatrix(rows, columns) {
  const matrix = new Float32Array(4 * Math.ceil(rows / 4) * columns);
  const scales = page.dtype === "int8" ? readArray(Float32Array, rows) : null;
  const values = readArray(scales ? Int8Array : Uint16Array, rows * columns);
  for (let i = 0; i < values.length; i++) {
    matrix[i] = scales ? values[i] * scales[Math.floor(i / columns)] : halfToNumber(values[i]);
  }
  return matrix;
}

// --- The model, with the equations of models/cells -----------------------------------------------

const table = readMatrix(V, GATES * H); // every token's input to the gates of the first layer
const layers = Array.from({ length: L }, (_, l) => ({
  inputKernel: l ? readMatrix(GATES * H, H) : null,
  inputBias: l ? readArray(Float32Array, GATES * H) : null,
  kernel: readMatrix(GATES * H, H),
  bias: hasBias ? readArray(Float32Array, H) : null,
  a: new Float32Array(4 * Math.ceil(GATES * H / 4)), // input part of the gates
  q: new Float32Array(4 * Math.ceil(GATES * H / 4)), // recurrent part of the gates
  h: new Float32Array(H),
  c: new Float32Array(H), // LSTM only
}));
const denseKernel = readMatrix(V, H);
const denseBias = readArray(Float32Array, V);
const logits = new Float32Array(4 * Math.ceil(V / 4));
delete page.weights;

/** y = kernel x, four rows at a time: the four sums do not wait for each other. */
function times(kernel, x, y) {
  const K = x.length;
  for (let n = 0; n < y.length; n += 4) {
    const i0 = n * K, i1 = i0 + K, i2 = i1 + K, i3 = i2 + K;
    let y0 = 0, y1 = 0, y2 = 0, y3 = 0;
    for (let k = 0; k < K; k++) {
      const x_k = x[k];
      y0 += kernel[i0 + k] * x_k;
      y1 += kernel[i1 + k] * x_k;
      y2 += kernel[i2 + k] * x_k;
      y3 += kernel[i3 + k] * x_k;
    }
    y[n] = y0; y[n + 1] = y1; y[n + 2] = y2; y[n + 3] = y3;
  }
}

const logistic = (x) => 1 / (1 + Math.exp(-x));

const CELLS = {
  gru({ a, q, h, bias }) {
    for (let j = 0; j < H; j++) {
      const r = logistic(a[j] + q[j]);
      const z = logistic(a[H + j] + q[H + j]);
      const n = Math.tanh(a[2 * H + j] + r * (q[2 * H + j] + bias[j]));
      h[j] = (1 - z) * n + z * h[j];
    }
  },
  lstm({ a, q, h, c }) {
    for (let j = 0; j < H; j++) {
      const i = logistic(a[j] + q[j]);
      const f = logistic(a[H + j] + q[H + j]);
      const g = Math.tanh(a[2 * H + j] + q[2 * H + j]);
      const o = logistic(a[3 * H + j] + q[3 * H + j]);
      c[j] = f * c[j] + i * g;
      h[j] = o * Math.tanh(c[j]);
    }
  },
  rnn({ a, q, h }) {
    for (let j = 0; j < H; j++) h[j] = Math.tanh(a[j] + q[j]);
  },
};

let hasRead = false; // without a token read, there is no prediction
let clamp = null; // {layer, unit, value}: a unit that is held at a value after each step, or null

function forget() {
  hasRead = false;
  for (const { h, c } of layers) {
    h.fill(0);
    c.fill(0);
  }
}

/** Reads one token: updates the layers' h and the logits of the next token. */
function read(token) {
  let x = null;
  for (const layer of layers) {
    if (x) {
      times(layer.inputKernel, x, layer.a);
      for (let j = 0; j < GATES * H; j++) layer.a[j] += layer.inputBias[j];
    } else {
      layer.a.set(table.subarray(token * GATES * H, (token + 1) * GATES * H));
    }
    times(layer.kernel, layer.h, layer.q);
    CELLS[cell](layer);
    if (clamp?.layer === layer) layer.h[clamp.unit] = clamp.value;
    x = layer.h;
  }
  times(denseKernel, x, logits);
  for (let id = 0; id < V; id++) logits[id] += denseBias[id];
  hasRead = true;
}

/** -log2 of the probability of a token; unlike below, [UNK] has a part, as in `charrnn score`. */
function bitsOf(token) {
  let largest = -Infinity, sum = 0;
  for (let id = 0; id < V; id++) largest = Math.max(largest, logits[id]);
  for (let id = 0; id < V; id++) sum += Math.exp(logits[id] - largest);
  return (Math.log(sum) + largest - logits[token]) / Math.LN2;
}

/** softmax(logits / temperature) without id 0, [UNK], which is never written; then top-p. */
function distribution(temperature, topP = 1) {
  const probabilities = new Float64Array(V);
  let largest = -Infinity, sum = 0;
  for (let id = 1; id < V; id++) largest = Math.max(largest, logits[id]);
  for (let id = 1; id < V; id++) {
    sum += probabilities[id] = Math.exp((logits[id] - largest) / temperature);
  }
  return keepLikeliest(probabilities.map((p) => p / sum), topP);
}

/**
 * Keeps the fewest most likely tokens with a total probability of at least `topP`, and any that are
 * as likely as the last of them.
 */
function keepLikeliest(probabilities, topP) {
  if (topP >= 1) return probabilities;
  let total = 0, least = 0;
  for (const p of probabilities.slice().sort().reverse()) {
    total += least = p;
    if (total >= topP) break;
  }
  const kept = probabilities.map((p) => (p < least ? 0 : p));
  const sum = kept.reduce((a, b) => a + b);
  return kept.map((p) => p / sum);
}

/** The ids of the five largest probabilities, largest first. */
function likeliest(probabilities) {
  const best = [];
  for (let id = 1; id < V; id++) {
    let place = best.length;
    while (place && probabilities[id] > probabilities[best[place - 1]]) place--;
    if (place < 5) best.splice(place, 0, id);
    if (best.length > 5) best.pop();
  }
  return best;
}

/** Mulberry32 (Tommy Ettinger 2017, public domain): numbers in [0, 1), reproducible by the seed. */
function makeRandom(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Draws a token: the first whose cumulative probability passes a random number. */
function draw(temperature, topP) {
  if (temperature === 0) return likeliest(distribution(1))[0];
  const probabilities = distribution(temperature, topP);
  let rest = random(), drawn = 0;
  for (let id = 1; id < V && rest >= 0; id++) {
    if (probabilities[id] > 0) drawn = id; // rounding may leave a remainder after the last one
    rest -= probabilities[id];
  }
  return drawn;
}
