"use strict";

// What is in the page comes from a model, from users and from tools. It is only ever put there as text
// (`textContent`), after `visible`, and names from it are never looked up in an object.

const UNKNOWN = 0xffff; // an entropy or a probability that nobody knows
const LEVELS = 10; // colours of a scale
const ENTROPY_LEVELS = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4]; // nats; between them the colours
const MOST_SHOWN = 160; // characters of one token
const REST_MILLISECONDS = 900; // on the last step of a canvas
const STATES = { n: "noise", a: "accepted", s: "settled" };
const KINDS = { t: "text", r: "thought", c: "tool call", x: "control token" };

// What the button does, and its sign.
const PLAY = ["Play", "M3 2v12l11-6z"];
const PAUSE = ["Pause", "M3 2h4v12H3zM9 2h4v12H9z"];
const AGAIN = ["Again", "M8 2a6 6 0 1 0 6 6h-2a4 4 0 1 1-4-4v2.5l4-3.5-4-3.5z"];

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// --- data ----------------------------------------------------------------------------------------

async function unpack(text) {
  const packed = atob(text);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();

  const headLength = new DataView(buffer).getUint32(0, true);
  const reply = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headLength)));
  let offset = 4 + headLength;
  const take = (Column, count) => {
    const start = offset;
    offset += count * Column.BYTES_PER_ELEMENT;
    return new Column(buffer.slice(start, offset)); // a copy: those of several bytes must begin at such a multiple
  };
  for (const canvas of reply.canvases) {
    const count = canvas.size * canvas.steps.length;
    canvas.pieces = take(Uint32Array, count);
    canvas.entropies = take(Uint16Array, count);
    canvas.kinds = take(Uint8Array, count);
    canvas.states = take(Uint8Array, count);
    canvas.candidates = take(Uint32Array, count * canvas.ranks);
    canvas.probabilities = take(Uint16Array, count * canvas.ranks);
  }
  prepare(reply);
  return reply;
}

function prepare(reply) {
  const last = Math.max(0, ...reply.canvases.map((canvas) => canvas.attempt));
  let start = 0;
  reply.canvases.forEach((canvas, number) => {
    canvas.number = number;
    canvas.first = start; // its first step among all of the reply
    start += canvas.steps.length;
    const next = reply.canvases[number + 1];
    canvas.wasEmpty = next?.attempt === canvas.attempt && next.block === canvas.block; // that is another draw of it
    canvas.isReply = canvas.attempt === last;
    canvas.report = canvas.isReply && !canvas.wasEmpty ? reply.blocks[canvas.block] : undefined;
    canvas.steps = canvas.steps.map(([step, end, mean, seconds], i) => {
      return { step, end, mean, seconds, accepted: accepted(canvas, i) };
    });
    const final = canvas.steps.at(-1);
    canvas.length = canvas.report ? canvas.report.tokens : (final.end ?? canvas.size); // of it, what is the reply's
  });
  reply.total = start;
}

function accepted(canvas, i) {
  const count = canvas.states.length / canvas.size;
  let number = 0;
  for (let at = i; at < canvas.states.length; at += count) number += canvas.states[at] !== 110; // "n"
  return number;
}

const stateOf = (canvas, position, i) => String.fromCharCode(canvas.states[position * canvas.steps.length + i]);
const kindOf = (canvas, position, i) => String.fromCharCode(canvas.kinds[position * canvas.steps.length + i]);
const pieceOf = (canvas, position, i) => canvas.pieces[position * canvas.steps.length + i];
const entropyOf = (canvas, position, i) => canvas.entropies[position * canvas.steps.length + i];

/** For each position since which step it has been accepted, and the same, to the end; -1: not in the last. */
function keptSince(canvas) {
  canvas.kept ??= Int16Array.from({ length: canvas.size }, (_, position) => {
    const last = canvas.steps.length - 1;
    const token = pieceOf(canvas, position, last);
    let since = -1;
    for (let i = last; i >= 0; i--) {
      if (stateOf(canvas, position, i) === "n" || pieceOf(canvas, position, i) !== token) break;
      since = i;
    }
    return since;
  });
  return canvas.kept;
}

function candidatesOf(canvas, position, i) {
  const count = canvas.steps.length;
  const found = [];
  for (let rank = 0; rank < canvas.ranks; rank++) {
    const at = (position * canvas.ranks + rank) * count + i;
    if (canvas.probabilities[at] === UNKNOWN) break;
    found.push({ text: label(reply.strings[canvas.candidates[at]]), probability: canvas.probabilities[at] / 1000 });
  }
  return found;
}

// --- words ---------------------------------------------------------------------------------------

// What isn't seen, or changes what is beside it: see wording.py. Of these the joiners stay between characters that
// aren't Latin, which need them.
const UNSEEN = /[\p{C}\p{DI}\p{Zl}\p{Zp}]/gu;
const JOINERS = "\u200c\u200d\ufe0e\ufe0f";
const JOINABLE = /[^\x00-\x7f]|[#*0-9]/;
const SHORT_ESCAPES = new Map([["\t", "\\t"], ["\r", "\\r"], ["\n", "\n"]]);

/** A text with nothing in it that a reader can't see: that is written out as an escape. Line feeds stay. `before` is
 * the character that stands before it, if any. */
function visible(text, before = "") {
  return text.replace(UNSEEN, (character, offset) => {
    if (JOINERS.includes(character) && JOINABLE.test(offset ? text[offset - 1] : before)) return character;
    return SHORT_ESCAPES.get(character) ?? escaped(character.codePointAt(0));
  });
}

function escaped(code) {
  const digits = code.toString(16);
  if (code < 0x100) return "\\x" + digits.padStart(2, "0");
  return code < 0x10000 ? "\\u" + digits.padStart(4, "0") : "\\U" + digits.padStart(8, "0");
}

function short(text, before = "") {
  if (text.length <= MOST_SHOWN) return visible(text, before);
  const kept = text.slice(0, MOST_SHOWN).replace(/[\ud800-\udbff]$/, "");
  return `${visible(kept)}… (${(text.length - kept.length).toLocaleString("en")} more)`;
}

/** A token on one line, with its blanks. */
function label(text) {
  if (text === "") return "(part of a character)";
  return short(text).replaceAll("\n", "↵").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
}

function nats(value) {
  if (value > 0 && value < 0.0005) return "< 0.001";
  return value.toFixed(value >= 0.1 ? 2 : 3);
}

const percent = (value) => (value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`);
const many = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// --- what is shown -------------------------------------------------------------------------------

let replies = [];
let reply;
let moment = 0; // which of all steps of the reply
let shownCanvas = null;
let timer = null; // there while it plays
let scale = "entropy";
let selected = null; // positions, or null
let hovered = null;
let current = 0; // the token that Tab comes to
const tokens = []; // spans, used again for every canvas
const shownPieces = []; // which of the reply's strings stands in each
const texts = []; // of the reply's strings, as they stand in a canvas

function here() {
  let number = reply.canvases.length - 1;
  while (reply.canvases[number].first > moment) number--;
  const canvas = reply.canvases[number];
  return { canvas, i: moment - canvas.first };
}

function go(to, { isPlaying = false } = {}) {
  if (!isPlaying) pause();
  moment = Math.max(0, Math.min(reply.total - 1, to));
  show();
}

function goCanvas(by) {
  const { canvas, i } = here();
  // Back is first to the beginning of the one at hand.
  const to = reply.canvases[canvas.number + (by < 0 && i > 0 ? 0 : by)];
  go(to ? to.first : by < 0 ? 0 : reply.total - 1);
}

function play() {
  if (moment >= reply.total - 1) moment = 0;
  timer = 0;
  show();
  wait();
}

function wait() {
  const { canvas, i } = here();
  const rest = i === canvas.steps.length - 1 ? REST_MILLISECONDS : 0;
  timer = setTimeout(() => {
    go(moment + 1, { isPlaying: true });
    if (moment < reply.total - 1) wait();
    else pause();
  }, Math.max(1000 / Number($("speed").value), rest));
}

function pause() {
  if (timer === null) return;
  clearTimeout(timer);
  timer = null;
  show();
}

function show() {
  const { canvas, i } = here();
  if (canvas !== shownCanvas) {
    shownCanvas = canvas;
    hovered = null;
    showPast(canvas);
    showNote(canvas);
    showRamp(canvas);
  }
  const step = canvas.steps[i];
  showTokens(canvas, i);
  showStatus(canvas, i, step);
  for (const plot of plots) plot.show(canvas, i);
  showHistory(canvas, i);
}

function showStatus(canvas, i, step) {
  const own = reply.canvases.filter((each) => each.attempt === canvas.attempt && !each.wasEmpty).length;
  const draw = canvas.redrawn ? `, draw ${canvas.redrawn + 1}` : "";
  const where = [`Canvas ${canvas.block + 1} of ${own}${draw}`, `step ${step.step} of ${canvas.steps.at(-1).step}`];
  const numbers = [
    `${step.accepted} of ${canvas.size} accepted`,
    `mean entropy ${nats(step.mean)} nats`,
    `${step.seconds.toFixed(1)}\u00a0s`,
  ];
  $("where-canvas").textContent = where[0];
  $("where-step").textContent = where[1];
  $("numbers").textContent = numbers.join(" · ");
  $("scrubber").value = moment;
  $("scrubber").setAttribute("aria-valuetext", where.join(", "));
  const [word, icon] = timer !== null ? PAUSE : moment === reply.total - 1 ? AGAIN : PLAY;
  $("play-word").textContent = word;
  $("play").querySelector("path").setAttribute("d", icon);
  $("step-back").disabled = $("canvas-back").disabled = moment === 0;
  $("step-on").disabled = $("canvas-on").disabled = moment === reply.total - 1;
  if (timer === null) say(`${where.join(", ")}. ${numbers.slice(0, 2).join(", ")}.`);
}

let saying;
/** To who listens, once nothing has changed for a moment. */
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => {
    if (timer === null) $("said").textContent = text;
  }, 500);
}

function showNote(canvas) {
  const note = $("note");
  note.hidden = false;
  if (!canvas.isReply)
    note.textContent = "An attempt that is not the reply: it might have called a tool, and did not. The reply follows.";
  else if (canvas.wasEmpty)
    note.textContent = "This canvas came out empty, so it was drawn again: nothing of it is in the reply.";
  else if (!canvas.report)
    note.textContent = "This canvas was not finished: nothing of it is in the reply.";
  else note.hidden = true;
}

/** The text of the canvases before, as runs of one kind. */
function showPast(canvas) {
  const past = $("past");
  past.replaceChildren();
  for (const before of reply.canvases) {
    if (before.number >= canvas.number || before.attempt !== canvas.attempt || before.wasEmpty) continue;
    const i = before.steps.length - 1;
    let run = null;
    let words = "";
    for (let position = 0; position <= before.length; position++) {
      const kind = position < before.length ? kindOf(before, position, i) : null;
      if (kind !== run) {
        if (words) past.append(make("span", run, visible(words)));
        run = kind;
        words = "";
      }
      if (kind !== null) words += reply.strings[pieceOf(before, position, i)];
    }
  }
  past.hidden = !past.firstChild;
  past.scrollTop = past.scrollHeight;
}

function showTokens(canvas, i) {
  const box = $("canvas");
  while (tokens.length < canvas.size) {
    const token = make("span");
    token.setAttribute("role", "option");
    token.tabIndex = -1;
    tokens.push(token);
    shownPieces.push(-1);
  }
  if (box.childElementCount !== canvas.size) box.replaceChildren(...tokens.slice(0, canvas.size));
  if (current >= canvas.size) setCurrent(0);
  const kept = keptSince(canvas);
  const { end } = canvas.steps[i];
  const isLast = i === canvas.steps.length - 1;
  const length = isLast ? canvas.length : (end ?? canvas.size);
  let before = ""; // the last character
  for (let position = 0; position < canvas.size; position++) {
    const token = tokens[position];
    const piece = pieceOf(canvas, position, i);
    const string = reply.strings[piece];
    const joins = string !== "" && JOINERS.includes(string[0]);
    if (shownPieces[position] !== piece || joins) {
      shownPieces[position] = piece;
      const text = inCanvas(piece, joins ? before : "");
      token.textContent = text;
      if (text.trim()) token.removeAttribute("aria-label");
      else token.setAttribute("aria-label", text ? "blank" : "part of a character");
    }
    before = string.at(-1) ?? before;
    const classes = ["tk", stateOf(canvas, position, i), kindOf(canvas, position, i)];
    classes.push("e" + entropyLevel(entropyOf(canvas, position, i)));
    if (kept[position] >= 0 && kept[position] <= i) classes.push("k" + keptLevel(canvas, kept[position]));
    if (position >= length && position !== end) classes.push("z");
    if (position === selected) classes.push("on");
    const className = classes.join(" ");
    if (token.className !== className) token.className = className;
  }
}

function inCanvas(piece, before) {
  const text = () => short(reply.strings[piece], before).replaceAll("\n", "↵\n");
  return before ? text() : (texts[piece] ??= text());
}

function entropyLevel(thousandths) {
  if (thousandths === UNKNOWN) return 0;
  const above = ENTROPY_LEVELS.findIndex((bound) => thousandths / 1000 < bound);
  return above < 0 ? LEVELS - 1 : above;
}

const keptLevel = (canvas, i) => Math.floor((i * (LEVELS - 1)) / Math.max(1, canvas.steps.length - 1));

function showRamp(canvas) {
  const isEntropy = scale === "entropy";
  $("canvas").className = `canvas text by-${scale}`;
  $("ramp").className = `ramp by-${scale}`;
  $("ramp-from").textContent = isEntropy ? "sure" : "in step 1";
  $("ramp-to").textContent = isEntropy ? "4 nats and more" : `in step ${canvas.steps.at(-1).step}`;
  const prefix = isEntropy ? "e" : "k";
  $("ramp").querySelector(".colours").replaceChildren(
    ...Array.from({ length: LEVELS }, (_, level) => make("i", prefix + level)),
  );
}

// --- one token -----------------------------------------------------------------------------------

let shownHistory = null; // what the rows in the table are of

function showHistory(canvas, i) {
  const position = hovered ?? selected;
  $("hint").hidden = position !== null;
  $("history").hidden = position === null;
  $("close").hidden = selected === null;
  $("token").classList.toggle("open", selected !== null);
  $("token-title").textContent = position === null ? "Token" : `Position ${position + 1}`;
  if (position === null) return;

  $("token-text").textContent = label(reply.strings[pieceOf(canvas, position, i)]);
  $("token-about").textContent = aboutToken(canvas, position, i);
  $("candidates-title").textContent = `In step ${canvas.steps[i].step}`;
  $("candidates").replaceChildren(
    ...candidatesOf(canvas, position, i).map(({ text, probability }) => {
      const row = make("tr");
      const bar = make("span", "bar");
      const filled = bar.appendChild(make("i"));
      filled.style.width = `${100 * probability}%`;
      const cell = make("td");
      cell.append(bar);
      row.append(make("td", "", text), cell, make("td", "", percent(probability)));
      return row;
    }),
  );

  const key = `${canvas.number} ${position}`;
  if (shownHistory !== key) {
    shownHistory = key;
    $("steps").replaceChildren(...canvas.steps.map((_, step) => historyRow(canvas, position, step)));
  }
  const rows = $("steps").children;
  for (let step = 0; step < rows.length; step++) rows[step].classList.toggle("now", step === i);
  const scroller = $("steps-scroll");
  scroller.scrollTop = rows[i].offsetTop - scroller.clientHeight / 2;
}

function aboutToken(canvas, position, i) {
  const words = [STATES[stateOf(canvas, position, i)], KINDS[kindOf(canvas, position, i)]];
  const entropy = entropyOf(canvas, position, i);
  if (entropy !== UNKNOWN) words.push(`entropy ${nats(entropy / 1000)} nats`);
  const since = keptSince(canvas)[position];
  words.push(since < 0 ? "not accepted in the last step" : `accepted for good in step ${canvas.steps[since].step}`);
  return words.join(" · ");
}

function historyRow(canvas, position, i) {
  const state = stateOf(canvas, position, i);
  const row = make("tr");
  row.dataset.step = i;
  const step = make("th", "", `${canvas.steps[i].step} `);
  step.scope = "row";
  const mark = make("span", "", { n: "○", a: "◐", s: "●" }[state]);
  mark.title = STATES[state];
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", STATES[state]);
  step.append(mark);

  const found = candidatesOf(canvas, position, i);
  const ribbon = make("div", "ribbon");
  ribbon.setAttribute("aria-hidden", "true");
  for (const { text, probability } of found) {
    const part = ribbon.appendChild(make("i", "", text));
    part.style.width = `${100 * probability}%`;
    if (probability < 0.04) part.style.paddingInlineStart = 0;
  }
  const words = found.map(({ text, probability }) => `${text} ${percent(probability)}`).join(", ");
  const cell = make("td");
  cell.append(ribbon, make("span", "unseen", words));
  cell.title = words;
  const entropy = entropyOf(canvas, position, i);
  row.append(step, cell, make("td", "", entropy === UNKNOWN ? "–" : nats(entropy / 1000)));
  return row;
}

function setCurrent(position) {
  tokens[current].tabIndex = -1;
  current = position;
  tokens[current].tabIndex = 0;
}

function select(position) {
  for (const [token, is] of [[tokens[selected], "false"], [tokens[position], "true"]])
    token?.setAttribute("aria-selected", is);
  selected = position;
  if (position !== null) {
    setCurrent(position);
    pauseQuietly(); // who looks at one token wants it to stay
  }
  show();
}

/** The token of the line above or below that is nearest. */
function vertical(direction) {
  const [from] = tokens[current].getClientRects();
  if (!from) return current;
  let best = current;
  let bestDistance = Infinity;
  for (let position = current + direction; tokens[position]?.parentNode; position += direction) {
    for (const to of tokens[position].getClientRects()) {
      const lines = direction * (to.top - from.top);
      if (lines < from.height / 2) continue;
      const distance = 1000 * lines + Math.abs(to.left - from.left);
      if (distance < bestDistance) [best, bestDistance] = [position, distance];
    }
  }
  return best;
}

// --- plots ---------------------------------------------------------------------------------------

class Plot {
  static LEFT = 34;
  static RIGHT = 334;
  static TOP = 10;
  static BOTTOM = 92;

  constructor(id, what, valueOf, shown) {
    Object.assign(this, { svg: $(id), what, valueOf, shown });
  }

  /** Draws what stays for the whole reply. */
  begin(top) {
    const { LEFT, RIGHT, TOP, BOTTOM } = Plot;
    this.top = top || 1;
    this.most = Math.max(2, ...reply.canvases.map((canvas) => canvas.steps.length));
    const axis = `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}`;
    this.line = this.path("this");
    this.at = this.path("at");
    this.dot = document.createElementNS(SVG, "circle");
    this.dot.setAttribute("r", 4.5);
    this.svg.replaceChildren(
      this.path("axis", axis),
      this.path("others", reply.canvases.map((canvas) => this.curve(canvas)).join("")),
      this.at, this.line, this.dot,
      this.text(LEFT - 5, TOP + 8, "end", this.shown(this.top)), this.text(LEFT - 5, BOTTOM, "end", "0"),
      this.text(LEFT, BOTTOM + 14, "middle", "1"), this.text(RIGHT, BOTTOM + 14, "end", String(this.most)),
    );
  }

  x(i) { return Plot.LEFT + ((Plot.RIGHT - Plot.LEFT) * i) / (this.most - 1); }
  y(value) { return Plot.BOTTOM - ((Plot.BOTTOM - Plot.TOP) * value) / this.top; }

  curve(canvas) {
    const point = (step, i) => `${this.x(i).toFixed(1)} ${this.y(this.valueOf(step)).toFixed(1)}`;
    return "M" + canvas.steps.map(point).join("L");
  }

  path(className, d = "") {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", className);
    path.setAttribute("d", d);
    return path;
  }

  text(x, y, anchor, words) {
    const text = document.createElementNS(SVG, "text");
    for (const [name, value] of [["x", x], ["y", y], ["text-anchor", anchor]]) text.setAttribute(name, value);
    text.textContent = words;
    return text;
  }

  show(canvas, i) {
    const value = this.valueOf(canvas.steps[i]);
    if (this.of !== canvas) {
      this.of = canvas;
      this.line.setAttribute("d", this.curve(canvas));
    }
    this.at.setAttribute("d", `M${this.x(i)} ${Plot.TOP}V${Plot.BOTTOM}`);
    this.dot.setAttribute("cx", this.x(i));
    this.dot.setAttribute("cy", this.y(value));
    const [first, last] = [canvas.steps[0], canvas.steps.at(-1)].map((step) => this.shown(this.valueOf(step)));
    this.svg.setAttribute(
      "aria-label",
      `${this.what} of canvas ${canvas.block + 1}: ${first} in the first step, ${last} in the last; ` +
        `${this.shown(value)} in step ${canvas.steps[i].step}, which is shown`,
    );
  }
}

let plots = [];

// --- a reply -------------------------------------------------------------------------------------

function open(number) {
  reply = replies[number];
  shownCanvas = shownHistory = selected = hovered = null;
  shownPieces.fill(-1);
  texts.length = 0;
  moment = 0;
  pauseQuietly();
  $("model").textContent = visible(reply.model);
  showBroken();
  showPrompt();
  showTables();
  showKinds();
  const isEmpty = reply.total === 0;
  for (const part of document.querySelectorAll(".player, .legend, .canvas, aside")) part.hidden = isEmpty;
  if (isEmpty) {
    $("past").hidden = true;
    $("note").hidden = false;
    $("note").textContent = "The reply ended before its first denoising step.";
    return;
  }
  $("canvas-size").textContent = reply.canvases[0].size;
  const isDrafted = reply.settings.some(([name]) => name === "draft");
  $("start").textContent = isDrafted ? "a draft with noise in it" : "noise";
  $("scrubber").max = reply.total - 1;
  drawMarks();
  plots = [
    new Plot("plot-entropy", "Mean entropy", (step) => step.mean, nats),
    new Plot("plot-accepted", "Accepted positions", (step) => step.accepted, String),
  ];
  const steps = reply.canvases.flatMap((canvas) => canvas.steps);
  plots[0].begin(steps.reduce((top, step) => Math.max(top, step.mean), 0));
  plots[1].begin(reply.canvases[0].size);
  show();
  setCurrent(0);
}

function pauseQuietly() {
  clearTimeout(timer);
  timer = null;
}

/** Along the track: how unsure the model was, and where canvases begin. */
function drawMarks() {
  const last = Math.max(1, reply.total - 1);
  const means = reply.canvases.flatMap((canvas) => canvas.steps.map((step) => step.mean));
  const top = means.reduce((most, mean) => Math.max(most, mean), 0) || 1;
  const heights = means.map((mean, i) => `L${(i / last).toFixed(5)} ${(1 - (0.92 * mean) / top).toFixed(3)}`);
  $("marks").querySelector(".heat").setAttribute("d", `M0 1${heights.join("")}L1 1Z`);
  const rules = reply.canvases.map((canvas) => `M${(canvas.first / last).toFixed(5)} 0V1`);
  $("marks").querySelector(".rule").setAttribute("d", rules.join(""));
}

/** That the reply didn't come to its end. */
function showBroken() {
  const figures = new Map(reply.figures);
  const words = new Map([
    ["interrupted", "This reply was interrupted."],
    ["error", `This reply was broken off by an error: ${figures.get("error")}`],
  ]).get(figures.get("finish_reason"));
  $("broken").hidden = words === undefined;
  $("broken").textContent = visible(words ?? "");
}

function showPrompt() {
  const asked = reply.prompt.findLastIndex(([role]) => role === "user");
  const from = Math.max(0, asked);
  const message = ([role, text]) => {
    const box = make("div", `message${role === "user" ? " user" : ""}`);
    const words = make("div", "text", visible(text));
    words.tabIndex = 0; // what is long is scrolled in there
    words.setAttribute("role", "group");
    words.setAttribute("aria-label", `Message of ${visible(role)}`);
    box.append(make("b", "", visible(role)), words);
    return box;
  };
  $("asked").replaceChildren(...reply.prompt.slice(from).map(message));
  $("earlier").hidden = from === 0;
  $("earlier").open = false;
  $("earlier").querySelector("summary").textContent = `${many(from, "message")} before`;
  $("earlier").querySelector("div").replaceChildren(...reply.prompt.slice(0, from).map(message));
}

function showKinds() {
  const found = new Set();
  for (const canvas of reply.canvases) {
    for (let position = 0; position < Math.min(canvas.size, canvas.length + 1); position++)
      found.add(kindOf(canvas, position, canvas.steps.length - 1));
  }
  $("key-kinds").replaceChildren();
  $("key-end").hidden = reply.canvases.every((canvas) => canvas.length === canvas.size);
  for (const kind of ["r", "c", "x"])
    if (found.has(kind)) $("key-kinds").append(make("span", `tk ${kind}`, KINDS[kind]));
}

const NAMES = new Map([
  ["finish_reason", "ended"],
  ["generate_seconds", "seconds to generate"],
  ["load_seconds", "seconds to load"],
  ["representation", "weights"],
  ["resolved_model", "model"],
  ["input_tokens", "tokens in"],
  ["output_tokens", "tokens out"],
  ["cached_tokens", "tokens from the cache"],
  ["tokens_per_forward", "tokens a step"],
]);
const PLACES = /^placement: (?:devices: )?/;
const named = (name) => NAMES.get(name) ?? visible(name.replace(PLACES, "")).replaceAll("_", " ");

function valued(value, name) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number")
    return value.toLocaleString("en", { maximumFractionDigits: 6, useGrouping: name.endsWith("bytes") });
  return visible(typeof value === "string" ? value : JSON.stringify(value));
}

/** Names and values, those inside of others under both their names. */
function* flat(pairs, prefix = "") {
  for (const [name, value] of pairs) {
    if (value !== null && typeof value === "object" && !Array.isArray(value))
      yield* flat(Object.entries(value), `${prefix}${name}: `);
    else if (value !== null && value !== "" && value.length !== 0) yield [prefix + name, value];
  }
}

function showTables() {
  const rows = (pairs) =>
    pairs.map(([name, value]) => {
      const row = make("tr");
      const head = make("th", "", named(name));
      head.scope = "row";
      row.append(head, make("td", "", valued(value, name)));
      return row;
    });
  $("answer").textContent = visible(reply.text) || "(empty)";
  $("settings").replaceChildren(...rows([...flat(reply.settings)]));
  const said = new Map(reply.settings.map(([name, value]) => [name, JSON.stringify(value)]));
  const isNew = ([name, value]) => name !== "blocks" && said.get(name) !== JSON.stringify(value);
  $("figures").replaceChildren(...rows([...flat(reply.figures.filter(isNew))]));

  const names = new Set(reply.blocks.flatMap((block) => Object.keys(block)));
  const columns = [...names].filter((name) => name !== "constraint");
  $("blocks").hidden = columns.length === 0;
  const head = make("tr");
  head.append(...["canvas", ...columns].map((name) => make("th", "", named(name))));
  $("blocks").tHead.replaceChildren(head);
  $("blocks").tBodies[0].replaceChildren(
    ...reply.blocks.map((block, number) => {
      const row = make("tr");
      const cells = columns.map((name) => make("td", "", valued(block[name] ?? null, name)));
      row.append(make("td", "", String(number + 1)), ...cells);
      return row;
    }),
  );
}

// --- who looks -----------------------------------------------------------------------------------

function positionOf(event) {
  const token = event.target.closest?.("#canvas > span");
  return token ? tokens.indexOf(token) : null;
}

function listen() {
  $("play").addEventListener("click", () => (timer === null ? play() : pause()));
  $("step-back").addEventListener("click", () => go(moment - 1));
  $("step-on").addEventListener("click", () => go(moment + 1));
  $("canvas-back").addEventListener("click", () => goCanvas(-1));
  $("canvas-on").addEventListener("click", () => goCanvas(1));
  $("scrubber").addEventListener("input", (event) => go(Number(event.target.value)));
  $("reply").addEventListener("change", (event) => {
    open(Number(event.target.value));
    begin();
  });
  $("scale").addEventListener("change", (event) => {
    scale = event.target.value;
    showRamp(shownCanvas);
  });

  $("canvas").addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    hovered = positionOf(event);
    show();
  });
  $("canvas").addEventListener("pointerleave", () => {
    hovered = null;
    show();
  });
  $("canvas").addEventListener("click", (event) => {
    const position = positionOf(event);
    if (position === null) return;
    tokens[position].focus({ preventScroll: true });
    select(position); // it may have had the focus already
  });
  $("canvas").addEventListener("focusin", (event) => select(positionOf(event)));
  $("close").addEventListener("click", deselect);
  $("steps").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) go(shownCanvas.first + Number(row.dataset.step));
  });
  document.addEventListener("keydown", onKey);
}

function deselect() {
  hovered = null;
  // What is closed gives the focus back to its token, and a token keeps it.
  if (selected !== null && $("token").contains(document.activeElement)) tokens[current].focus({ preventScroll: true });
  select(null);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || reply.total === 0) return;
  const isToken = tokens[current] === event.target;
  const isOwn = event.target.closest?.("select, input, summary, [role=region], .message") !== null;
  if (event.key === "Escape" && (selected ?? hovered) !== null) deselect();
  else if (event.key === " " && !event.target.closest("button, select, summary, input[type=radio]"))
    timer === null ? play() : pause();
  else if (event.shiftKey && !isToken && event.target.type !== "radio" && /^Arrow(Left|Right)$/.test(event.key))
    goCanvas(event.key === "ArrowLeft" ? -1 : 1);
  else if (isToken ? !moveToken(event.key) : isOwn || !moveStep(event.key)) return;
  event.preventDefault();
}

function moveToken(key) {
  const last = shownCanvas.size - 1;
  const to = {
    ArrowLeft: () => Math.max(0, current - 1),
    ArrowRight: () => Math.min(last, current + 1),
    ArrowUp: () => vertical(-1),
    ArrowDown: () => vertical(1),
    Home: () => 0,
    End: () => last,
  }[key];
  if (to) tokens[to()].focus();
  return Boolean(to);
}

function moveStep(key) {
  const to = { ArrowLeft: moment - 1, ArrowRight: moment + 1, Home: 0, End: reply.total - 1 }[key];
  if (to !== undefined) go(to);
  return to !== undefined;
}

function begin() {
  if (reply.total > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}

function trouble(words) {
  $("trouble").textContent = words;
  $("trouble").hidden = false;
}

async function main() {
  if (!("DecompressionStream" in window)) {
    trouble("This browser can't unpack what is in the page. Any of 2023 or later can.");
    return;
  }
  replies = await Promise.all($("data").textContent.split("\n").filter(Boolean).map(unpack));
  if (replies.length === 0) {
    trouble("No reply is in this page.");
    return;
  }
  $("all").hidden = false;
  replies.forEach((each, number) => {
    const [, asked] = each.prompt.findLast(([role]) => role === "user") ?? ["", ""];
    const after = each.prompt.at(-1)?.[0] === "tool" ? " (after a tool)" : "";
    const option = make("option", "", `${number + 1}. ${short(asked.split("\n", 1)[0])}${after}`);
    option.value = number;
    $("reply").append(option);
  });
  $("chooser").hidden = replies.length < 2;
  listen();
  open(0);
  begin();
}

main().catch((error) => {
  trouble("What is in this page can't be read. It may have been cut or changed.");
  console.error(error);
});
