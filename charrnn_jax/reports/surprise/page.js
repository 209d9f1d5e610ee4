// Colours the blocks of the text as they come into view, and shows the numbers of one character.
const {readers} = JSON.parse(document.getElementById("data").textContent);
const text = document.getElementById("text");
const details = document.getElementById("details");
const BITS = 1 / Math.LN2;
const FULL = {loss: 8, difference: 4};  // bits of the strongest colour

function numbers(packed, bytes) {
  const raw = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  return bytes === 1 ? raw : new Uint16Array(raw.buffer);
}
for (const reader of readers) {
  const units = numbers(reader.losses, reader.bytes);
  reader.bits = Float32Array.from(units, (unit) => unit * reader.step * BITS);
  reader.sums = new Float64Array(units.length);
  for (let i = 1; i < units.length; i++) reader.sums[i] = reader.sums[i - 1] + reader.bits[i];
  if (reader.num) {
    reader.ids = numbers(reader.likeliest, 2);
    reader.shares = numbers(reader.probabilities, 2);
  }
}

// --- colours ------------------------------------------------------------------------------------

let shown = 0;  // 0 and 1: a reader; 2: the first minus the second
function colour(span) {
  const i = span.index;
  const bits = shown < 2 ? readers[shown].bits[i] : readers[0].bits[i] - readers[1].bits[i];
  const full = shown < 2 ? FULL.loss : FULL.difference;
  span.style.setProperty("--a", Math.min(1, Math.abs(bits) / full).toFixed(3));
  span.classList.toggle("cold", bits < 0);
}
function showScale() {
  const isDifference = shown === 2;
  document.body.classList.toggle("difference", isDifference);
  document.getElementById("low").textContent = isDifference ? `−${FULL.difference}` : "0";
  document.getElementById("high").textContent =
    `${isDifference ? FULL.difference : FULL.loss} bits or more`;
}

let start = 0;
const blocks = [...text.children];
for (const block of blocks) {
  block.characters = [...block.textContent];  // by code point
  block.start = start;
  start += block.characters.length;
}
const spans = new Map();
function fill(block) {
  if (block.filled) return;
  block.filled = true;
  block.replaceChildren(...block.characters.map((character, k) => {
    const span = document.createElement("span");
    span.textContent = character;
    if (character === "\n") span.className = "end";
    span.index = block.start + k;
    spans.set(span.index, span);
    colour(span);
    return span;
  }));
}
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) fill(entry.target);
}, {rootMargin: "800px"});
blocks.forEach((block) => observer.observe(block));

for (const input of document.querySelectorAll("input[name=shown]")) {
  input.addEventListener("change", () => {
    shown = Number(input.value);
    spans.forEach(colour);
    showScale();
  });
}
showScale();

// --- one character ------------------------------------------------------------------------------

let selected = null;
function visible(character) {
  if (character === "\n") return "line break";
  if (character === "\r") return "carriage return";
  if (character === " ") return "space";
  return character === "\t" ? "tab" : character;
}
function add(parent, ...parts) {
  for (const part of parts) {
    if (typeof part === "string") parent.append(part);
    else {
      const code = document.createElement("code");
      code.textContent = visible(part.code);
      parent.append(code);
    }
  }
}
function describe(index, character) {
  details.replaceChildren();
  if (index === 0) {
    details.textContent = "The first character is context: nothing predicts it.";
    return;
  }
  for (const reader of readers) {
    const line = document.createElement("div");
    const bits = reader.bits[index];
    const rough = reader.bytes === 1;  // in steps of 0.09 bits, whose sums are exact
    const loss = rough ? ` about ${bits.toFixed(1)} bits` :
      ` ${bits.toFixed(2)} bits, probability ${percent(2 ** -bits)}`;
    add(line, readers.length > 1 ? `${reader.name}: ` : "", {code: character},
      `${loss}; up to here ${(reader.sums[index] / index).toFixed(3)} bits/char`);
    if (reader.num) {
      add(line, ". Likeliest:");
      const first = (index - 1) * reader.num;
      for (let k = first; k < first + reader.num; k++) {
        add(line, " ", {code: reader.symbols[reader.ids[k]]}, ` ${percent(reader.shares[k] / 65535)}`);
      }
    }
    details.append(line);
  }
}
function percent(share) {
  return share < 0.001 ? "below 0.1%" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
}
function select(index) {
  const block = blocks.findLast((each) => each.start <= index);
  if (!block || index < 0 || index >= start) return;
  fill(block);
  selected?.classList.remove("selected");
  selected = spans.get(index);
  selected.classList.add("selected");
  describe(index, selected.textContent);
}
// A pointer at rest, below which the text moves, selects nothing.
text.addEventListener("pointermove", (event) => {
  if (event.movementX || event.movementY) selectTarget(event);
});
text.addEventListener("click", selectTarget);
function selectTarget({target}) {
  if (target.index !== undefined && target !== selected) select(target.index);
}
text.addEventListener("keydown", (event) => {
  const move = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity}[event.key];
  if (move === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const from = selected ? selected.index : -1;
  select(Math.max(0, Math.min(start - 1, from + move)));
  selected.scrollIntoView({block: "nearest"});
});
