// --- Tokens and text -----------------------------------------------------------------------------

const isBytes = page.vocabulary.kind === "bytes";
// Code points, not one string: two lone surrogates next to each other would become one character.
const symbols = page.vocabulary.code_points.map((point) => String.fromCodePoint(point));
const idOf = new Map(symbols.map((symbol, index) => [symbol, index + 1]));

/** Returns the ids of a text and the characters that the model does not know. */
function encode(text) {
  if (isBytes) {
    return { tokens: Array.from(new TextEncoder().encode(text), (b) => b + 1), unknown: [] };
  }
  const characters = Array.from(text);
  return {
    tokens: characters.filter((c) => idOf.has(c)).map((c) => idOf.get(c)),
    unknown: [...new Set(characters.filter((c) => !idOf.has(c)))],
  };
}

let decoder;
/** Returns the text that a token completes; bytes of an unfinished character wait for the rest. */
const decode = (token) =>
  isBytes ? decoder.decode(Uint8Array.of(token - 1), { stream: true }) : symbols[token - 1];

const NAMES = { "\n": "↵ newline", "\t": "⇥ tab", " ": "␣ space" };
// Or changes how other characters are shown; joiners are ordinary letters of many scripts.
const INVISIBLE = /(?![\n\t\p{Join_Control}])[\p{C}\p{Zl}\p{Zp}]/u;
const codePoint = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

/** Returns a visible form of a character. */
function visible(c) {
  if (NAMES[c]) return NAMES[c];
  if (INVISIBLE.test(c) || /[\p{Z}\p{Join_Control}]/u.test(c)) return codePoint(c);
  return /\p{M}/u.test(c) ? "◌" + c : c;
}
const byteName = (byte) => "0x" + byte.toString(16).toUpperCase().padStart(2, "0");
/** Returns the name of a token; a byte outside ASCII is named by its number. */
const nameOf = (token) =>
  !isBytes ? visible(symbols[token - 1])
  : token - 1 < 128 ? visible(String.fromCharCode(token - 1)) : byteName(token - 1);

const unit = isBytes ? "byte" : "character";
const counted = (n) => `${n.toLocaleString("en")} ${unit}${n === 1 ? "" : "s"}`;
const percent = (p) =>
  p >= 0.0995 ? (100 * p).toFixed(0) + "%" : p >= 0.0005 ? (100 * p).toFixed(1) + "%" : "<0.1%";
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

// --- The page ------------------------------------------------------------------------------------

const $ = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const SLICE_MS = 24; // computing time before the browser gets to handle events and paint

/** The tokens of the text: {token, element, probability, bits, best, activations}. */
let text = [];
let measured = { bits: 0, count: 0 }; // of the tokens that the model predicted
let random; // random numbers of the current text
let selected = -1; // index of the selected character; -1: none
let pinned = false; // whether the selection stays when the pointer moves
let running = false;
let following = true; // whether the end of the text is kept in view

const whole = () => text.map(({ element }) => element.textContent).join("");

/** Makes an element; its content is plain text, never markup. */
function make(name, content, properties = {}) {
  return Object.assign(document.createElement(name), properties, { textContent: content });
}

/**
 * Returns the paragraph to append to. Browsers lay out one paragraph at a time, so each line of the
 * text gets its own. A long line is split: its last row on the screen moves to a new paragraph.
 */
function paragraph() {
  const last = $.text.lastChild;
  const isOpen = last && !last.lastChild.textContent.endsWith("\n");
  if (isOpen && last.childElementCount < 1000) return last;
  const next = make("p", "", { dir: "auto" });
  if (isOpen) {
    const rowOf = (element) => element?.getClientRects()[0].top;
    const moved = [last.lastChild];
    while (rowOf(moved[0].previousSibling) === rowOf(last.lastChild)) {
      moved.unshift(moved[0].previousSibling);
    }
    next.append(...moved);
  }
  $.text.append(next);
  return next;
}

/** Appends a token to the text and reads it. */
function append(token, className) {
  const content = decode(token);
  const element = make("span", content, { className });
  element.index = text.length;
  const invisible = content.match(INVISIBLE);
  if (invisible) {
    element.classList.add("named");
    element.dataset.name = codePoint(invisible[0]);
  }
  const entry = {
    token, element, probability: null, bits: 0, best: [], activations: new Int8Array(L * H),
  };
  if (hasRead) {
    const probabilities = distribution(1);
    entry.probability = probabilities[token];
    entry.bits = bitsOf(token);
    measured.bits += entry.bits;
    measured.count++;
    entry.best = likeliest(probabilities).map((id) => ({ id, probability: probabilities[id] }));
  }
  read(token);
  // h is in [-1, 1]; 8 bits are more than a colour can show.
  layers.forEach(({ h }, l) => h.forEach((x, j) => {
    entry.activations[l * H + j] = Math.round(127 * x);
  }));
  paragraph().append(element);
  text.push(entry);
  paint(entry);
}

const colour = () => $.colours.querySelector(":checked").value;
const activation = (entry) =>
  entry.activations[$.layer.valueAsNumber * H + $.neuron.valueAsNumber] / 127;

/** Returns how unexpected a character was: -log2 p bits, where 8 bits or more have full colour. */
const surprise = ({ probability }) => Math.min(-Math.log2(probability ?? 1) / 8, 1);

/** Colours a character by a number: 0 none, 1 warm, -1 cold. */
function paint(entry) {
  if (colour() === "off") return;
  const x = colour() === "neuron" ? activation(entry) : surprise(entry);
  entry.element.classList.toggle("cold", x < 0);
  entry.element.style.setProperty("--a", Math.abs(x).toFixed(3));
}

function recolour() {
  $.which.hidden = $.which.disabled = $["neuron-scale"].hidden = colour() !== "neuron";
  $["probability-scale"].hidden = colour() !== "probability";
  if (!$.layer.validity.valid || !$.neuron.validity.valid) return;
  $.text.dataset.colour = colour();
  text.forEach(paint);
  inspect(selected);
}

/** Shows what the model expected at the character with this index; -1: nothing. */
function inspect(index) {
  text[selected]?.element.classList.remove("selected");
  selected = index;
  const entry = text[selected];
  $.inspector.classList.toggle("empty", !entry);
  if (!entry) {
    $.chosen.textContent = "No character is selected.";
    $.alternatives.replaceChildren();
    return;
  }
  entry.element.classList.add("selected");
  const had = entry.probability === null ? ": the first character has no prediction"
    : ` had ${percent(entry.probability)}, ${entry.bits.toFixed(1)} bits`;
  $.chosen.replaceChildren(make("b", nameOf(entry.token)), had);
  if (colour() === "neuron") {
    const value = activation(entry);
    $.chosen.append(`; neuron ${$.neuron.value} `, make("data", signed(value), { value }));
  }
  $.alternatives.replaceChildren(...entry.best.map(({ id, probability }) => {
    const item = make("li", ""), name = make("b", ""), [symbol, word] = nameOf(id).split(" ");
    name.append(symbol);
    if (word) name.append(make("span", ` ${word}`));
    item.append(name, make("data", percent(probability), { value: probability }));
    item.style.setProperty("--p", probability);
    if (id === entry.token) item.setAttribute("aria-current", "true");
    return item;
  }));
}

function moveTo(index) {
  if (!text.length) return;
  pinned = true;
  inspect(Math.min(Math.max(index, 0), text.length - 1));
  text[selected].element.scrollIntoView({ block: "nearest" });
}

/** Moves to the line below (direction 1) or above (-1) on the screen. */
function moveLine(direction) {
  const boxOf = (index) => text[index].element.getClientRects()[0];
  if (selected < 0) return moveTo(0);
  const here = boxOf(selected);
  let nearest = selected, distance = Infinity, line;
  for (let index = selected + direction; index in text; index += direction) {
    const box = boxOf(index);
    const lines = Math.round(Math.abs(box.top - here.top) / here.height);
    if (lines === 0) continue;
    line ??= lines;
    const away = Math.abs(box.left - here.left);
    if (lines > line || away > distance) break;
    [nearest, distance] = [index, away];
  }
  moveTo(nearest);
}

/** Shows how long the text is and what it cost the model, as `charrnn score` measures it. */
function measure() {
  $.copy.disabled = $.save.disabled = !text.length;
  const { bits, count } = measured;
  $.measured.textContent = text.length ? counted(text.length) : "";
  if (!count) return;
  $.measured.append(", ", make("data", (bits / count).toFixed(3), { value: bits / count }),
    ` bits/${isBytes ? "byte" : "char"}`);
}

function unpin() {
  pinned = false;
  inspect(-1);
}
