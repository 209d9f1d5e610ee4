
// Colours the text by a unit, and shows the numbers of one character.
const data = JSON.parse(document.getElementById("data").textContent);
const [ranked, layerBox, unitBox, shownBox, probeBox, text, details] =
  ["ranked", "layer", "unit", "shown", "probe", "text", "details"].map(
    (id) => document.getElementById(id));
const characters = [...data.text];  // by code point
const LEVELS = 15;

async function unpack({levels, scales}) {
  const bytes = Uint8Array.from(atob(levels), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return {levels: new Int8Array(await new Response(stream).arrayBuffer()), scales};
}
const outputs = await unpack(data.outputs);
const values = {};
for (const [name, packed] of Object.entries(data.values)) values[name] = await unpack(packed);
const places = new Map(data.listed.map(([layer, unit], k) => [layer * data.units + unit, k]));

// --- the text -----------------------------------------------------------------------------------

const spans = characters.map((character, index) => {
  const span = document.createElement("span");
  span.textContent = character;
  if (character === "\n") span.className = "end";
  span.index = index;
  return span;
});
text.append(...spans);

let layer = 0, unit = 0, selected = null;
function chosen() {  // the numbers of the unit: its column, and its scale
  const number = layer * data.units + unit;
  const [of, column] = shownBox.value === "output" ?
    [outputs, number] : [values[shownBox.value], places.get(number)];
  const start = column * characters.length;
  return {levels: of.levels.subarray(start, start + characters.length), scale: of.scales[column]};
}
function paint() {
  const {levels, scale} = chosen();
  spans.forEach((span, i) => {
    span.style.setProperty("--a", Math.abs(levels[i] / LEVELS).toFixed(2));
    span.classList.toggle("cold", levels[i] < 0);
  });
  document.getElementById("low").textContent = `−${scale.toPrecision(2)}`;
  document.getElementById("high").textContent = scale.toPrecision(2);
  if (selected !== null) describe(selected);
}
function underline() {
  const truth = probeBox.value && data.ranked[probeBox.value].truth;
  spans.forEach((span, i) => span.classList.toggle("true", truth[i] === "1"));
}

// --- the unit -----------------------------------------------------------------------------------

function add(parent, label, value = label) {
  const option = new Option(label, value);
  parent.append(option);
  return option;
}
add(ranked, "a unit of your choice", "");
add(probeBox, "nothing", "");
data.ranked.forEach(({probe, units}, k) => {
  add(probeBox, probe, k);
  if (!units.length) return;
  const group = document.createElement("optgroup");
  group.label = probe;
  for (const each of units) {
    add(group, `${probe}, ${each.layer}:${each.unit} (AUC ${each.auc.toFixed(3)})`,
      `${k} ${each.layer} ${each.unit}`);
  }
  ranked.append(group);
});
add(shownBox, "output");
for (const name of Object.keys(values)) add(shownBox, name);
layerBox.max = data.layers - 1;
unitBox.max = data.units - 1;

function choose(newLayer, newUnit, entry = "") {
  layer = Math.max(0, Math.min(data.layers - 1, Math.trunc(newLayer) || 0));
  unit = Math.max(0, Math.min(data.units - 1, Math.trunc(newUnit) || 0));
  ranked.value = entry;
  layerBox.value = layer;
  unitBox.value = unit;
  const isListed = places.has(layer * data.units + unit);
  for (const option of shownBox.options) option.disabled = option.value !== "output" && !isListed;
  if (!isListed) shownBox.value = "output";
  paint();
}
function chooseFor(probe, newLayer, newUnit) {
  chooseRanked(`${data.ranked.findIndex((each) => each.probe === probe)} ${newLayer} ${newUnit}`);
}
function chooseRanked(entry) {
  const [k, ...place] = entry.split(" ").map(Number);
  probeBox.value = k;
  underline();
  choose(...place, entry);
}
ranked.addEventListener("change", () => ranked.value && chooseRanked(ranked.value));
for (const box of [layerBox, unitBox]) {
  box.addEventListener("input", () => {
    if (box.value !== "") choose(Number(layerBox.value), Number(unitBox.value));
  });
}
shownBox.addEventListener("change", paint);
probeBox.addEventListener("change", underline);

// A unit in a table is a button that shows it.
for (const row of document.querySelectorAll("tbody tr")) {
  const cells = [...row.cells];
  const cell = cells.find((each) => /^\d+:\d+$/.test(each.textContent));
  const probe = data.ranked.find((each) => cells.some((other) => other.textContent === each.probe));
  if (!cell || !probe) continue;
  const button = document.createElement("button");
  button.textContent = cell.textContent;
  button.setAttribute("aria-label", `Show unit ${cell.textContent}`);
  button.addEventListener("click", () => {
    chooseFor(probe.probe, ...cell.textContent.split(":"));
    text.focus({preventScroll: true});
    document.getElementById("tools").scrollIntoView();
  });
  cell.replaceChildren(button);
}

// --- one character ------------------------------------------------------------------------------

const NAMES = {"\n": "line break", "\r": "carriage return", " ": "space", "\t": "tab"};
function code(symbol) {
  const element = document.createElement("code");
  element.textContent = NAMES[symbol] ?? symbol;
  return element;
}
function describe(index) {
  const {levels, scale} = chosen();
  const value = (levels[index] / LEVELS * scale).toFixed(2);
  details.replaceChildren("After ", code(characters[index]), ` the ${shownBox.value} of ${layer}:`,
    `${unit} is about ${value}. Likeliest next:`);
  for (let k = index * data.num; k < (index + 1) * data.num; k++) {
    const share = data.shares[k] / 10;
    const entry = document.createElement("span");
    entry.append(code(data.symbols[data.likeliest[k]]), ` ${share.toFixed(share < 10 ? 1 : 0)}%`);
    details.append(" ", entry);
  }
}
function select(index) {
  if (selected !== null) spans[selected].classList.remove("selected");
  selected = index;
  spans[index].classList.add("selected");
  describe(index);
}
function selectTarget({target}) {
  if (target.index !== undefined && target.index !== selected) select(target.index);
}
// A pointer at rest, below which the text moves, selects nothing.
text.addEventListener("pointermove", (event) => {
  if (event.movementX || event.movementY) selectTarget(event);
});
text.addEventListener("click", selectTarget);
text.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity}[event.key];
  const other = {ArrowUp: -1, ArrowDown: 1}[event.key];
  if (move === undefined && other === undefined) return;
  event.preventDefault();
  if (move !== undefined) {
    select(Math.max(0, Math.min(characters.length - 1, (selected ?? -1) + move)));
    spans[selected].scrollIntoView({block: "nearest"});
  } else {
    const number = layer * data.units + unit + other;
    if (number >= 0 && number < data.layers * data.units) {
      choose(Math.floor(number / data.units), number % data.units);
    }
  }
});

const [best] = data.best;
if (best) chooseFor(best[2], best[0], best[1]);
else choose(0, 0);
