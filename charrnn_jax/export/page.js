// --- Writing -------------------------------------------------------------------------------------

let isRepeat = false; // whether nothing that affects the text has changed since the last Generate
let lastHeld = ""; // which neuron was held then

const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
/** Returns the neuron that is held, such as "0:217 held at +0.90"; "": none. */
const held = () => (colour() === "neuron" && isPressed($.hold)
  ? `${$.layer.valueAsNumber}:${$.neuron.valueAsNumber} held at ${signed($.held.valueAsNumber)}` : "");

const channel = new MessageChannel();
/** Lets the browser handle events and paint; unlike a timer, it returns at once. */
const breathe = () => new Promise((resolve) => {
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(null);
});

/** Yields drawn tokens; the caller appends each one to the text before asking for the next. */
function* draws(count) {
  const stop = $.stop.value.replaceAll("\\n", "\n");
  const temperature = $.temperature.valueAsNumber, topP = $["top-p"].valueAsNumber;
  let end = "";
  for (let i = 0; i < count; i++) {
    yield draw(temperature, topP);
    end = (end + text.at(-1).element.textContent).slice(-stop.length - 4);
    if (stop && end.includes(stop)) return;
  }
}

/** Appends tokens until there are no more or the reader stops; returns how many. */
async function write(tokens, className) {
  const start = performance.now();
  let count = 0, slice = start;
  const show = () => {
    const speed = (1000 * count) / (performance.now() - start);
    const units = isBytes ? "bytes" : "chars";
    $.speed.textContent = `${Math.round(speed).toLocaleString("en")} ${units}/s`;
    measure();
    if (following && className !== "own") $.end.scrollIntoView({ block: "end" });
  };
  for (const token of tokens) {
    append(token, className);
    count++;
    if (performance.now() - slice < SLICE_MS) continue;
    show();
    await breathe();
    if (!running) break;
    slice = performance.now();
  }
  show();
  return count;
}

/** Starts a new text with these tokens; returns how many were read. */
async function begin(tokens, className) {
  forget();
  text = [];
  measured = { bits: 0, count: 0 };
  unpin();
  $.text.replaceChildren();
  random = makeRandom($.seed.valueAsNumber);
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  if (!tokens.length) read(encode("\n").tokens[0] ?? 1); // no prompt: the start of a line
  return write(tokens, className);
}

/** Shows a status, with names of characters that do not change the direction of what follows. */
function say(before, characters = [], after = "") {
  const names = characters.flatMap((c) => [" ", make("bdi", visible(c))]);
  $.status.replaceChildren(before, ...names, after);
}

/** Returns the tokens of a text, or null after saying that the model knows no character of it. */
function encodeOrSay(content, name) {
  const encoded = encode(content);
  if (!content || encoded.tokens.length) return encoded;
  say(`The model knows no character of this ${name}. Some that it knows:`, symbols.slice(0, 40));
  return null;
}

/**
 * Does some work, which can be stopped; then shows what was done.
 *
 * @param work returns what it did, such as "Wrote", and the number of tokens
 * @param unknown characters that were skipped
 * @param where where they were, such as "in the prompt"
 */
async function run(work, unknown, where) {
  running = true;
  $.generate.textContent = "Stop";
  $.continue.disabled = $.read.disabled = true;
  const start = performance.now();
  const { done, count, how = "" } = await work();
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const what = `${running ? done : "Stopped after"} ${counted(count)} in ${seconds} s${how}.`;
  running = false;
  $.generate.textContent = "Generate";
  $.continue.disabled = $.read.disabled = false;
  if (!unknown.length) return say(what);
  const more = unknown.length > 8 ? " …" : "";
  say(`${what} The model does not know`, unknown.slice(0, 8), `${more}: skipped ${where}.`);
}

async function generate(isNew) {
  const prompt = isNew ? encodeOrSay($.prompt.value, "prompt") : { unknown: [] };
  if (!prompt) return;
  following = true;
  const holding = held();
  clamp = holding ? { layer: layers[$.layer.valueAsNumber], unit: $.neuron.valueAsNumber,
    value: $.held.valueAsNumber } : null;
  await run(async () => {
    if (isNew) {
      // The same text again would be of no use. The seed of each text stays visible.
      if (isRepeat && holding === lastHeld) $.seed.value = ($.seed.valueAsNumber + 1) % 2 ** 32;
      [isRepeat, lastHeld] = [true, holding];
      say("Reading the prompt…");
      await begin(prompt.tokens, "prompt");
    }
    if (running) say("Writing…");
    const count = running ? await write(draws($.length.valueAsNumber), "") : 0;
    return { done: "Wrote", count, how: holding && `, with neuron ${holding}` };
  }, prompt.unknown, "in the prompt");
}

/** Reads the text that the reader has given, so that it is coloured. */
async function readOwn() {
  const own = encodeOrSay($.own.value, "text");
  if (!own) return;
  if (own.tokens.length < 2) return say("Paste two characters or more: the first is context.");
  clamp = null;
  await run(async () => {
    say("Reading your text…");
    return { done: "Read", count: await begin(own.tokens, "own") };
  }, own.unknown, "in your text");
}

// --- Finding neurons -----------------------------------------------------------------------------

const NUM_FOUND = 8;
const OWN = "own regular expression";

/** Returns the chosen probe; throws if the reader's expression is wrong. */
function chosenProbe() {
  if ($.probe.value !== OWN) return PROBES[$.probe.value];
  const pattern = new RegExp($.pattern.value, "gmu");
  return (content) => inside(content, pattern);
}

/** Returns the activations [N] and the marks [N] of the tokens at which a character ends. */
function marked(probe) {
  const all = probe(whole()), activations = [], marks = [];
  let end = 0;
  for (const entry of text) {
    const length = entry.element.textContent.length;
    if (!length) continue; // a byte of an unfinished character
    end += length;
    activations.push(entry.activations);
    marks.push(all[end - 1]);
  }
  return { activations, marks };
}

/** Returns a button that selects a unit, with its AUC. */
function makeChoice(area, unit) {
  const layer = Math.floor(unit / H), neuron = unit % H;
  const button = make("button", `${layer}:${neuron} `, { type: "button" });
  button.append(make("data", area.toFixed(2), { value: area }));
  button.addEventListener("click", () => {
    [$.layer.value, $.neuron.value] = [layer, neuron];
    recolour();
  });
  return button;
}

/** Lists the neurons that follow the chosen probe best on the text that is shown. */
function find() {
  $.found.replaceChildren();
  let probe;
  try {
    probe = chosenProbe();
  } catch (error) {
    $.finding.textContent = error.message;
    return;
  }
  const { activations, marks } = marked(probe);
  const count = marks.reduce((a, b) => a + b, 0);
  const numbers = [count, marks.length].map((n) => n.toLocaleString("en"));
  $.finding.textContent = `True at ${numbers.join(" of ")} characters.`;
  if (!count || count === marks.length) {
    $.finding.append(" It must be true at some and not at others: try another text.");
    return;
  }
  $.finding.append(" AUC: 0.5 is chance; 1, the neuron is always higher there; 0, always lower.");
  const distance = ({ area }) => Math.abs(area - 0.5);
  const found = areasUnderCurve(activations, marks).map((area, unit) => ({ area, unit }))
    .sort((a, b) => distance(b) - distance(a)).slice(0, NUM_FOUND);
  for (const { area, unit } of found) {
    const item = make("li", "");
    item.append(makeChoice(area, unit));
    $.found.append(item);
  }
}

// --- Copy and save -------------------------------------------------------------------------------

async function copy() {
  try {
    await navigator.clipboard.writeText(whole());
    say("Copied.");
  } catch { // the browser does not allow it, or has no clipboard
    document.getSelection().selectAllChildren($.text);
    say("The text is selected: copy it with the browser's own command.");
  }
}

/** Saves the text; a text of bytes as these bytes. */
function save() {
  const content = isBytes ? Uint8Array.from(text, ({ token }) => token - 1) : whole();
  const href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  make("a", "", { href, download: "text.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(href)); // some browsers read it only after this
  say("Saved as text.txt.");
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

$.probe.append(...[...Object.keys(PROBES), OWN].map((name) => make("option", name)));

/** Shows what the sliders are set to, and the field of a pattern if there is one to give. */
function showValues() {
  $["temperature-shown"].textContent = $.temperature.valueAsNumber.toFixed(2);
  $["top-p-shown"].textContent = $["top-p"].valueAsNumber.toFixed(2);
  $["held-shown"].textContent = signed($.held.valueAsNumber);
  $.pattern.parentElement.hidden = $.probe.value !== OWN;
}
$.settings.addEventListener("input", ({ target }) => {
  isRepeat &&= $.colours.contains(target) || target === $.own;
  showValues();
});
$.colours.addEventListener("input", recolour);
$.hold.addEventListener("click", () => $.hold.setAttribute("aria-pressed", !isPressed($.hold)));
$.find.addEventListener("click", find);
$.pattern.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // or it would start a text
  find();
});
$.read.addEventListener("click", readOwn);
$.copy.addEventListener("click", copy);
$.save.addEventListener("click", save);
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
  const line = text[selected]?.element.parentElement;
  const right = line && getComputedStyle(line).direction === "rtl" ? -1 : 1;
  const move = {
    ArrowLeft: () => moveTo(selected - right),
    ArrowRight: () => moveTo(selected + right),
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
  const selection = document.getSelection();
  if (selection.isCollapsed) return;
  const chosen = selection.getRangeAt(0).cloneContents();
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

showValues();
recolour();
$.generate.disabled = $.read.disabled = false;
$.status.textContent = "Ready.";
