/* Markdown inside of a line: emphasis, code, links. Makes DOM nodes, never markup: whatever a text says, it stays text. */

const SAFE = new Set(["http:", "https:", "mailto:"]);
const LONGEST_LINK = 2000; // characters: how far a bracket looks for its end

const MARKERS = { "**": "strong", "__": "strong", "*": "em", "_": "em", "~~": "del" };

/* One alternative for each thing that means something; all else is plain. */
const TOKEN = /\\([!-/:-@[-`{-~])|(`+)|(\*+|_+|~~)|(!?\[)|(\])|<((?:https?:\/\/|mailto:)[^\s<>]+)>|(\bhttps?:\/\/[^\s<>"`\\\]]+)|(\\?\n)/g;

/**
 * Append a text to an element as DOM nodes. Time and depth are bounded for any text: linear, and a dozen elements deep at the most.
 * With `growing`, the text may go on: what is not closed yet in bold or code is shown as if it were.
 */
export function renderInline(element, text, { growing = false } = {}) {
  build(element, pairUp(tokenize(text, growing), growing));
}

/** Return the address if it is absolute and of a harmless kind, otherwise null. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return SAFE.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function tokenize(text, growing) {
  const tokens = [];
  const brackets = []; // places of those that are open
  const unclosed = new Set(); // lengths of backtick runs that have no second one further on
  const plain = (piece) => piece && tokens.push({ kind: "text", text: piece });
  let end = 0;
  TOKEN.lastIndex = 0;
  for (let found; (found = TOKEN.exec(text)); ) {
    const [whole, escaped, ticks, marks, opening, closing, angled, bare, newline] = found;
    plain(text.slice(end, found.index));
    end = TOKEN.lastIndex;
    if (escaped) {
      plain(escaped);
    } else if (ticks) {
      const close = unclosed.has(ticks.length) ? -1 : closingTicks(text, end, ticks.length);
      if (close < 0) unclosed.add(ticks.length);
      if (close >= 0 || (growing && ticks.length < 3 && end < text.length)) {
        tokens.push({ kind: "code", text: codeText(text.slice(end, close < 0 ? undefined : close)) });
        end = close < 0 ? text.length : close + ticks.length;
      } else plain(ticks);
    } else if (marks) {
      splitMarks(tokens, marks, text[found.index - 1] ?? " ", text[end] ?? " ");
    } else if (opening) {
      brackets.push(tokens.push({ kind: "open", text: opening }) - 1);
    } else if (closing) {
      const target = brackets.length ? linkTarget(text, end) : null;
      const pair = brackets.pop();
      if (target) {
        tokens[pair].pair = tokens.push({ kind: "close", href: target.href, pair }) - 1;
        end += target.length;
        brackets.length = 0; // no link in a link
      } else plain(closing);
    } else if (newline) {
      tokens.push({ kind: "break" });
    } else {
      const address = angled ?? withoutTail(bare);
      const href = safeAddress(address);
      if (href) tokens.push({ kind: "address", text: address, href });
      else plain(whole);
      if (bare && href) end = found.index + address.length;
    }
    TOKEN.lastIndex = end;
  }
  plain(text.slice(end));
  return tokens;
}

function closingTicks(text, from, length) {
  const run = /`+/g;
  run.lastIndex = from;
  for (let found; (found = run.exec(text)); ) if (found[0].length === length) return found.index;
  return -1;
}

/* One space on each side goes, so that code can begin with a backtick. */
function codeText(text) {
  const flat = text.replaceAll("\n", " ");
  return /^ .* $/.test(flat) && flat.trim() ? flat.slice(1, -1) : flat;
}

function splitMarks(tokens, marks, before, after) {
  const char = marks[0];
  let opens = !/\s/.test(after);
  let closes = !/\s/.test(before);
  if (char === "_") {
    // snake_case is no emphasis
    opens &&= !/[\p{L}\p{N}]/u.test(before);
    closes &&= !/[\p{L}\p{N}]/u.test(after);
  }
  if (marks.length > 3 || (!opens && !closes)) {
    tokens.push({ kind: "text", text: marks });
    return;
  }
  for (let left = marks.length; left > 0; left -= 2) {
    tokens.push({ kind: "mark", text: left === 1 ? char : char + char, opens, closes });
  }
  // *** opens as ** * and closes as * **
  if (marks.length === 3 && closes && !opens) tokens.push(...tokens.splice(-2).reverse());
}

function linkTarget(text, from) {
  const shape = /^\( ?(?:<([^<>\n]*)>|((?:[^\s()<>]|\([^\s()]*\))*))(?:[ \n](?:"[^"\n]*"|'[^'\n]*'))? ?\)/;
  const found = text[from] === "(" && shape.exec(text.slice(from, from + LONGEST_LINK));
  return found ? { href: safeAddress(found[1] ?? found[2]), length: found[0].length } : null;
}

/* A full stop after an address belongs to the sentence, and so does a bracket that was opened before it. */
function withoutTail(address) {
  let end = address.length;
  for (;;) {
    const last = address[end - 1];
    if (/[.,:;!?'*_~]/.test(last)) end -= 1;
    else if (last === ")" && !address.slice(0, end).includes("(")) end -= 1;
    else return address.slice(0, end);
  }
}

/* Give each mark that opens emphasis the place of the one that closes it, and the other way round. */
function pairUp(tokens, growing) {
  let open = []; // places of marks that are open, outermost first, each kind at most once: this bounds the depth
  let outside = null;
  tokens.forEach((token, place) => {
    // Links bind tighter than emphasis, which can be inside or around, but not across.
    if (token.kind === "open" && token.pair !== undefined) [outside, open] = [open, []];
    if (token.kind === "close") open = outside;
    if (token.kind !== "mark") return;
    const match = open.findLastIndex((other) => tokens[other].text === token.text);
    if (token.closes && match >= 0) {
      if (open[match] !== place - 1) {
        tokens[open[match]].pair = place;
        token.pair = open[match];
      }
      open.length = match;
    } else if (token.opens && match < 0) open.push(place);
  });
  if (growing) {
    const bold = open.findLast((place) => MARKERS[tokens[place].text] === "strong");
    if (bold !== undefined) tokens[bold].pair = tokens.push({ kind: "mark", text: "", pair: bold }) - 1;
  }
  return tokens;
}

function build(element, tokens) {
  let inside = element;
  tokens.forEach(({ kind, text, href, pair }, place) => {
    if (pair !== undefined && pair > place) {
      const made = kind === "mark" ? document.createElement(MARKERS[text]) : linkTo(tokens[pair].href);
      inside.append(made);
      inside = made;
    } else if (pair !== undefined) {
      inside = inside.parentNode;
    } else if (kind === "break") {
      inside.append(document.createElement("br"));
    } else if (kind === "code") {
      inside.append(textElement("code", text));
    } else if (kind === "address") {
      const link = linkTo(href);
      link.textContent = text;
      inside.append(link);
    } else {
      inside.append(text);
    }
  });
}

/* Without an address that is safe, what would be a link is a plain text. */
function linkTo(href) {
  if (!href) return document.createElement("span");
  const link = document.createElement("a");
  link.href = href;
  link.title = href;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow ugc";
  return link;
}

function textElement(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
