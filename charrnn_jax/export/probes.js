// --- Probes: what a unit may follow, with the definitions of evaluation/probes.py ----------------

/** Returns a value for each UTF-16 code unit: 0, or in a match `value(match, place in it)`. */
function inside(text, pattern, value = () => 1) {
  const values = new Array(text.length).fill(0);
  for (const { index, 0: match } of text.matchAll(pattern)) {
    for (let i = 0; i < match.length; i++) values[index + i] = value(match, i);
  }
  return values;
}

/** Returns 1 where a bracket is open in this paragraph, else 0. */
function insideBrackets(text) {
  let depth = 0;
  return text.split("").map((c, i) => {
    if (c === "\n" && text[i - 1] === "\n") depth = 0;
    depth = Math.max(depth + "([{".includes(c) - ")]}".includes(c), 0);
    return Math.min(depth, 1);
  });
}

/** Returns 1 where a number is above the median, or is the largest if none is above; else 0. */
function aboveMedian(numbers) {
  const sorted = Float64Array.from(numbers).sort(), middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  const isHigh = sorted.at(-1) > median ? (x) => x > median : (x) => x === median;
  return numbers.map((x) => Number(isHigh(x)));
}

// A quotation is inside one paragraph; the apostrophe of "it's" opens and closes none.
const QUOTES = new RegExp([
  /"[^"\n]*(?:\n(?!\n)[^"\n]*)*"/,
  /“[^”]{0,2000}”/,
  /(?<![\p{L}\p{N}_])'(?=[^\s'])(?:(?!\n\n)[^]){0,300}?(?<=[^\s'])'(?![\p{L}\p{N}_])/,
].map(({ source }) => source).join("|"), "gu");
const UPPER_CASE = /(?<![\p{L}\p{N}_])\p{Lu}{2,}(?![\p{L}\p{N}_])/gu;
const SPEAKER = /(?<![^\n])(?=\p{L})[^\n:]{1,40}:(?=\n)/gu;
const LINE = /[^\n]+/g;
const WORD = /\p{L}+(?:['’]\p{L}+)*/gu;
const VOWELS = /[aeiouyàâäáãåæèéêëìíîïòóôöõøœùúûüýÿ]+/gi;

/** Returns the number of groups of vowels up to a letter. */
const numSyllables = (word, i) => word.slice(0, i + 1).match(VOWELS)?.length ?? 0;

/** name -> function from a text to 1 or 0 for each code unit; numbers are split at their median */
const PROBES = {
  "inside quotes": (text) => inside(text, QUOTES),
  "inside brackets": insideBrackets,
  "upper-case word": (text) => inside(text, UPPER_CASE),
  "speaker line": (text) => inside(text, SPEAKER),
  "distance since newline": (text) => aboveMedian(inside(text, LINE, (_, i) => i + 1)),
  "position in line": (text) => aboveMedian(inside(text, LINE, (line, i) => (i + 1) / line.length)),
  "position in word": (text) => aboveMedian(inside(text, WORD, (_, i) => i + 1)),
  syllable: (text) => aboveMedian(inside(text, WORD, numSyllables)),
};

/**
 * Returns for each unit the AUC: the probability that it is higher at a marked token than at one
 * without a mark, with ties as one half.
 *
 * @param activations [N] of Int8Array with all units
 * @param marks [N], 1 or 0
 */
function areasUnderCurve(activations, marks) {
  const numUnits = activations[0].length;
  const counts = [0, 1].map(() => new Uint32Array(256 * numUnits)); // of tokens, by mark and value
  activations.forEach((values, i) => values.forEach((value, unit) => {
    counts[marks[i]][256 * unit + value + 128]++;
  }));
  const numMarked = marks.reduce((a, b) => a + b);
  const pairs = numMarked * (marks.length - numMarked);
  return Array.from({ length: numUnits }, (_, unit) => {
    let below = 0, won = 0;
    for (let at = 256 * unit; at < 256 * (unit + 1); at++) {
      won += counts[1][at] * (below + counts[0][at] / 2);
      below += counts[0][at];
    }
    return won / pairs;
  });
}
