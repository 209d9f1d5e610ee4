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
const INVISIBLE = /(?![\n\t])[\p{C}\p{Zl}\p{Zp}]/u; // or changes how other characters are shown
const codePoint = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

/** Returns a visible form of a character. */
function visible(c) {
  if (NAMES[c]) return NAMES[c];
  if (INVISIBLE.test(c) || /\p{Z}/u.test(c)) return codePoint(c);
  return /\p{M}/u.test(c) ? "◌" + c : c;
}
const byteName = (byte) => "0x" + byte.toString(16).toUpperCase().padStart(2, "0");
/** Returns the name of a token; a byte outside ASCII is named by its number. */
const nameOf = (token) =>
  !isBytes ? visible(symbols[token - 1])
  : token - 1 < 128 ? visible(String.fromCharCode(token - 1)) : byteName(token - 1);

const percent = (p) =>
  p >= 0.0995 ? (100 * p).toFixed(0) + "%" : p >= 0.0005 ? (100 * p).toFixed(1) + "%" : "<0.1%";
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

// --- The page ------------------------------------------------------------------------------------

const $ = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const SLICE_MS = 24; // computing time before the browser gets to handle events and paint

/** The tokens of the text: {token, element, probability, best, activations}. */
let text = [];
let random; // random numbers of the current text
let selected = -1; // index of the selected character; -1: none
let pinned = false; // whether the selection stays when the pointer moves
let running = false;
let isRepeat = false; // whether nothing that affects the text has changed since the last Generate
let following = true; // whether the end of the text is kept in view

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
  const entry = { token, element, probability: null, best: [], activations: new Int8Array(L * H) };
  if (hasRead) {
    const probabilities = distribution(1);
    entry.probability = probabilities[token];
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
    : ` had ${percent(entry.probability)}`;
  $.chosen.replaceChildren(make("b", nameOf(entry.token)), had);
  if (colour() === "neuron") {
    const value = activation(entry);
    $.chosen.append(`; neuron ${$.neuron.value} `, make("data", signed(value), { value }));
  }
  $.alternatives.replaceChildren(...entry.best.map(({ id, probability }) => {
    const item = make("li", "");
    item.append(make("b", nameOf(id)), make("data", percent(probability), { value: probability }));
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

function unpin() {
  pinned = false;
  inspect(-1);
}

// --- Writing -------------------------------------------------------------------------------------

const unit = isBytes ? "byte" : "character";
const counted = (n) => `${n.toLocaleString("en")} ${unit}${n === 1 ? "" : "s"}`;

const channel = new MessageChannel();
/** Lets the browser handle events and paint; unlike a timer, it returns at once. */
const breathe = () => new Promise((resolve) => {
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(null);
});

/** Yields drawn tokens; the caller appends each one to the text before asking for the next. */
function* draws(count, { temperature, stop }) {
  let end = "";
  for (let i = 0; i < count; i++) {
    yield draw(temperature);
    end = (end + text.at(-1).element.textContent).slice(-stop.length - 4);
    if (stop && end.includes(stop)) return;
  }
}

/** Appends tokens until there are no more or the reader stops; returns how many. */
async function write(tokens, className) {
  const start = performance.now();
  let count = 0, slice = start;
  const showSpeed = () => {
    const speed = (1000 * count) / (performance.now() - start);
    const units = isBytes ? "bytes" : "chars";
    $.speed.textContent = `${Math.round(speed).toLocaleString("en")} ${units}/s`;
  };
  for (const token of tokens) {
    append(token, className);
    count++;
    if (performance.now() - slice < SLICE_MS) continue;
    showSpeed();
    if (following) $.end.scrollIntoView({ block: "end" });
    await breathe();
    if (!running) break;
    slice = performance.now();
  }
  showSpeed();
  if (following) $.end.scrollIntoView({ block: "end" });
  return count;
}

/** Starts a new text with the prompt. */
async function begin(tokens) {
  forget();
  text = [];
  unpin();
  $.text.replaceChildren();
  random = makeRandom($.seed.valueAsNumber);
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  if (tokens.length) await write(tokens, "prompt");
  else read(encode("\n").tokens[0] ?? 1); // no prompt: the start of a line
}

async function generate(isNew) {
  const { tokens, unknown } = encode($.prompt.value);
  const skipped = unknown.length && isNew
    ? ` The model does not know ${unknown.slice(0, 8).map(visible).join(" ")}`
      + `${unknown.length > 8 ? " …" : ""}: skipped in the prompt.` : "";
  if (isNew && $.prompt.value && !tokens.length) {
    $.status.textContent = `The model knows no character of this prompt. Some that it knows: ${
      symbols.slice(0, 40).map(visible).join(" ")}`;
    return;
  }
  running = following = true;
  $.generate.textContent = "Stop";
  $.continue.disabled = true;
  if (isNew) {
    // The same text again would be of no use. The seed of each text stays visible.
    if (isRepeat) $.seed.value = ($.seed.valueAsNumber + 1) % 2 ** 32;
    isRepeat = true;
    $.status.textContent = "Reading the prompt…";
    await begin(tokens);
  }
  const start = performance.now();
  let count = 0;
  if (running) {
    $.status.textContent = "Writing…";
    const stop = $.stop.value.replaceAll("\\n", "\n");
    const temperature = $.temperature.valueAsNumber;
    count = await write(draws($.length.valueAsNumber, { temperature, stop }), "");
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const ended = running ? "Wrote" : "Stopped after";
  $.status.textContent = `${ended} ${counted(count)} in ${seconds} s.${skipped}`;
  running = false;
  $.generate.textContent = "Generate";
  $.continue.disabled = false;
}

// --- Start ---------------------------------------------------------------------------------------

document.title = $.title.textContent = page.title;
$.description.textContent = page.description;
$.prompt.value = page.prompt;
const facts = {
  ...page.facts,
  Network: `${L} × ${H.toLocaleString("en")} ${cell.toUpperCase()}`,
  Vocabulary: isBytes ? "256 bytes" : counted(V - 1),
  Weights: `${page.dtype}, ${(bytes.length / 1e6).toFixed(1)} MB`,
};
for (const [name, value] of Object.entries(facts)) {
  $.facts.append(make("dt", name), make("dd", value));
}
$.layer.parentElement.hidden = L === 1;
$.layer.max = L - 1;
$.neuron.max = H - 1;
$.layers.textContent = `0 to ${L - 1}`;
$.neurons.textContent = `0 to ${H - 1}`;
if (isBytes) $.units.textContent = "Bytes";

function showTemperature() {
  $["temperature-shown"].textContent = $.temperature.valueAsNumber.toFixed(2);
}
$.temperature.addEventListener("input", showTemperature);
$.colours.addEventListener("input", recolour);
$.settings.addEventListener("input", ({ target }) => {
  isRepeat &&= $.colours.contains(target);
});
$.settings.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running = false;
  else generate(event.submitter !== $.continue);
});

$.text.addEventListener("pointerover", ({ target, pointerType }) => {
  if (pointerType === "mouse" && !pinned && target.index >= 0) inspect(target.index);
});
$.text.addEventListener("click", ({ target }) => {
  if (!(target.index >= 0)) return;
  if (pinned && target.index === selected) unpin();
  else moveTo(target.index);
});
$.text.addEventListener("keydown", (event) => {
  const move = {
    ArrowLeft: () => moveTo(selected - 1),
    ArrowRight: () => moveTo(selected + 1),
    ArrowUp: () => moveLine(-1),
    ArrowDown: () => moveLine(1),
    Home: () => moveTo(0),
    End: () => moveTo(text.length - 1),
  }[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  event.preventDefault();
  move();
});
$.text.addEventListener("copy", (event) => { // only the characters, without what the layout adds
  const chosen = document.getSelection().getRangeAt(0).cloneContents();
  event.clipboardData.setData("text/plain", chosen.textContent);
  event.preventDefault();
});
$.previous.addEventListener("click", () => moveTo(selected - 1));
$.next.addEventListener("click", () => moveTo(selected + 1));
$.close.addEventListener("click", unpin);
document.addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  if (running) running = false;
  else unpin();
});
new IntersectionObserver(([end]) => { following = end.isIntersecting; }, { rootMargin: "200px" })
  .observe($.end);

showTemperature();
recolour();
$.generate.disabled = false;
$.status.textContent = "Ready.";
