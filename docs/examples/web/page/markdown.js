/* Markdown as it is written by a model, while it is being written: only the last block is made anew as the text grows. */

import { renderInline } from "./inline.js";

const DEEPEST = 12; // lists and quotes within each other; what is deeper stays text

const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])(?: {1,4}|$)/;
const TABLE_RULE = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;

/* The beginning of a line that does not tell yet what it will be. */
const UNDECIDED = /^(?:[#>*+~`-]+|\d{1,9}[.)]?|\|.*)?$/;

/** An answer on the page. */
export class MarkdownView {
  #element;
  #source = "";
  #start = 0; // where those blocks begin that may still change, in the source
  #live = []; // [{ block, node, open }] of them: the last one, and what a line that is not whole yet looks like

  constructor(element) {
    this.#element = element;
  }

  /** The text so far. */
  get source() {
    return this.#source;
  }

  /** Take more of the text, which is shown by the next `render()`. */
  append(text) {
    // What is stored in the end begins and ends with no space.
    this.#source = this.#source ? this.#source + text : text.trimStart();
  }

  /** Show the text so far, of which the last block may go on. */
  render() {
    this.#show(true);
  }

  /** Show the text, which is this and is whole. */
  finish(text) {
    if (text !== this.#source.trimEnd()) {
      this.#element.replaceChildren();
      this.#start = 0;
      this.#live = [];
    }
    this.#source = text;
    this.#show(false);
  }

  #show(growing) {
    const tail = this.#source.slice(this.#start).split("\n");
    const lines = tail.map((line) => line.replace(/\r$/, ""));
    const last = this.#live.at(-1)?.block;
    const inCode = last?.kind === "code" && !last.closed;
    if (growing && !inCode && UNDECIDED.test(lines.at(-1).trim())) lines.pop();
    const blocks = parse(lines, 0);
    blocks.forEach((block, place) => this.#put(place, block, growing && place === blocks.length - 1));
    for (const { node } of this.#live.splice(blocks.length)) node.remove();
    if (growing) this.#settle(tail, parse(lines.slice(0, tail.length - 1), 0).at(-1)?.first ?? 0);
  }

  /* The blocks before this line stay as they are: the lines that follow them are whole. */
  #settle(tail, line) {
    this.#live = this.#live.filter(({ block }) => block.first >= line);
    for (const { block } of this.#live) {
      block.first -= line;
      block.next -= line;
    }
    for (let before = 0; before < line; before += 1) this.#start += tail[before].length + 1;
  }

  #put(place, block, open) {
    const before = this.#live[place];
    if (before && before.open === open && JSON.stringify(before.block) === JSON.stringify(block)) return;
    if (before?.block.kind === "code" && block.kind === "code" && block.text.startsWith(before.block.text)) {
      // Not made anew: a reader may have marked a part of it, or scrolled it sideways.
      before.node.querySelector("code").firstChild.appendData(block.text.slice(before.block.text.length));
      before.node.querySelector(".language").textContent = block.language;
      this.#live[place] = { block, node: before.node, open };
      return;
    }
    const node = makeBlock(block, open);
    if (before) before.node.replaceWith(node);
    else this.#element.append(node);
    this.#live[place] = { block, node, open };
  }
}

// --- lines to blocks -------------------------------------------------------------------------------------------------

/* Each block has its kind, the index of its first line, and of the line after it. */
function parse(lines, depth) {
  const blocks = [];
  for (let first = 0; first < lines.length; ) {
    if (!lines[first].trim()) {
      first += 1;
      continue;
    }
    const block = parseBlock(lines, first, depth);
    blocks.push({ ...block, first });
    first = block.next;
  }
  return blocks;
}

function parseBlock(lines, first, depth) {
  const line = lines[first];
  let found;
  if ((found = FENCE.exec(line))) return parseCode(lines, first, found);
  if ((found = HEADING.exec(line))) {
    const text = line.slice(found[0].length).trim().replace(/(?:^|[ \t])#+$/, "");
    return { kind: "heading", level: found[1].length, text, next: first + 1 };
  }
  if (RULE.test(line)) return { kind: "rule", next: first + 1 };
  if (depth < DEEPEST && QUOTE.test(line)) return parseQuote(lines, first, depth);
  if (depth < DEEPEST && ITEM.test(line)) return parseList(lines, first, depth);
  if (startsTable(lines, first)) return parseTable(lines, first);
  return parseParagraph(lines, first);
}

function startsBlock(lines, place) {
  const line = lines[place];
  const item = ITEM.exec(line);
  // "1984. That was" at the beginning of a line is more likely a year than a list.
  const starts = item && line.slice(item[0].length).trim() && (item[2] === undefined || item[2] === "1");
  return starts || [FENCE, HEADING, RULE, QUOTE].some((kind) => kind.test(line)) || startsTable(lines, place);
}

function parseParagraph(lines, first) {
  let next = first + 1;
  while (next < lines.length && lines[next].trim() && !startsBlock(lines, next)) next += 1;
  const text = lines.slice(first, next).map((line) => line.trim()).join("\n");
  return { kind: "paragraph", text, next };
}

function parseCode(lines, first, [, indent, fence, language]) {
  const closes = (line) => {
    const end = line.trim();
    return end.length >= fence.length && end === fence[0].repeat(end.length);
  };
  let next = first + 1;
  while (next < lines.length && !closes(lines[next])) next += 1;
  const closed = next < lines.length;
  // The last line may be the beginning of the end.
  const end = closed || !/^[`~]*$/.test(lines[next - 1].trim()) ? next : next - 1;
  const margin = new RegExp(`^ {0,${indent.length}}`);
  const text = lines.slice(first + 1, end).map((line) => line.replace(margin, "")).join("\n");
  return { kind: "code", language: language.trim().split(/\s/)[0].slice(0, 30), text, closed, next: next + closed };
}

function parseQuote(lines, first, depth) {
  let next = first;
  const inside = [];
  for (; next < lines.length; next += 1) {
    const marked = QUOTE.test(lines[next]);
    if (!marked && (!lines[next].trim() || startsBlock(lines, next))) break;
    inside.push(lines[next].replace(QUOTE, ""));
  }
  return { kind: "quote", blocks: parse(inside, depth + 1), next };
}

function parseList(lines, first, depth) {
  const [, indent, number] = ITEM.exec(lines[first]);
  const items = [];
  let next = first;
  for (let place = first; place < lines.length; place += 1) {
    const line = lines[place];
    const margin = line.length - line.trimStart().length;
    const item = ITEM.exec(line);
    if (item && margin < indent.length + 2 && (item[2] === undefined) === (number === undefined)) {
      if (RULE.test(line)) break;
      items.push([line.slice(item[0].length)]);
    } else if (line.trim()) {
      const lazy = next === place && !item && !startsBlock(lines, place);
      if (margin < indent.length + 2 && !lazy) break;
      // Models indent what is inside by two to four.
      items.at(-1).push(line.slice(Math.min(margin, indent.length + (number ? number.length + 2 : 2))));
    } else {
      items.at(-1).push("");
      continue; // belongs to the list only if more of it follows
    }
    next = place + 1;
  }
  return { kind: "list", start: number, items: items.map((inside) => parse(inside, depth + 1)), next };
}

function startsTable(lines, place) {
  return lines[place].includes("|") && lines[place + 1]?.includes("|") && TABLE_RULE.test(lines[place + 1].trim());
}

function parseTable(lines, first) {
  const [head, rule] = [cells(lines[first]), cells(lines[first + 1])];
  const sides = rule.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
  let next = first + 2;
  while (next < lines.length && lines[next].includes("|")) next += 1;
  return { kind: "table", sides, head, rows: lines.slice(first + 2, next).map(cells), next };
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// --- blocks to nodes -------------------------------------------------------------------------------------------------

function makeBlock(block, growing) {
  switch (block.kind) {
    case "heading":
      // The page's own headings are the first two levels.
      return inline(element(`h${Math.min(block.level + 2, 6)}`, `level-${block.level}`), block.text, growing);
    case "rule":
      return element("hr");
    case "quote":
      return fill(element("blockquote"), block.blocks, growing);
    case "list":
      return makeList(block, growing);
    case "table":
      return makeTable(block);
    case "code":
      return makeCode(block);
    default:
      return inline(element("p"), block.text, growing);
  }
}

function fill(parent, blocks, growing) {
  blocks.forEach((block, place) => parent.append(makeBlock(block, growing && place === blocks.length - 1)));
  return parent;
}

function makeList({ start, items }, growing) {
  const list = element(start === undefined ? "ul" : "ol");
  if (start !== undefined) list.start = Number(start);
  items.forEach((blocks, place) => list.append(fill(element("li"), blocks, growing && place === items.length - 1)));
  return list;
}

function makeTable({ sides, head, rows }) {
  const table = element("table");
  const makeRow = (parent, name, row) => {
    const made = parent.insertRow();
    // As many as the head has, whatever a row says.
    head.forEach((_, column) => {
      const cell = inline(element(name, sides[column] ?? "start"), row[column] ?? "");
      if (name === "th") cell.scope = "col";
      made.append(cell);
    });
  };
  makeRow(table.createTHead(), "th", head);
  const body = table.createTBody();
  for (const row of rows) makeRow(body, "td", row);
  const frame = scrollable(element("div", "table"), "Table");
  frame.append(table);
  return frame;
}

function makeCode({ language, text }) {
  const frame = element("figure", "code");
  const title = element("figcaption");
  const name = element("span", "language");
  name.textContent = language;
  title.append(name);
  const pre = scrollable(element("pre"), "Code");
  const code = element("code");
  code.append(document.createTextNode(text));
  pre.append(code);
  if (navigator.clipboard) title.append(copyButton(code));
  frame.append(title, pre);
  return frame;
}

function copyButton(code) {
  const button = element("button", "copy");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const copied = await navigator.clipboard.writeText(code.textContent).then(() => true, () => false);
    button.textContent = copied ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

/* What scrolls must be reached by the keyboard. */
function scrollable(made, label) {
  made.tabIndex = 0;
  made.setAttribute("role", "region");
  made.setAttribute("aria-label", label);
  return made;
}

function inline(made, text, growing = false) {
  renderInline(made, text, { growing });
  return made;
}

function element(name, className = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}
