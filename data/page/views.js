// What the views put into a turn, the panel with all of a turn, and the packed sequence.

const MANY = 90; // tokens: more than a turn has room for on the page
const FILL = { text: fillText, entropy: fillEntropy, credit: fillCredit };

/** The tags of the format and a model's own marks, such as that of the end; they are set back. */
const tagPattern = (tags) => `</?(?:${tags.join("|")})>|<\\|[^|<>\\s]+\\|>`;

function withTags(text, tags) {
  const pattern = new RegExp(`(${tagPattern(tags)})`);
  return text.split(pattern).map((part, i) => (i % 2 ? el("span", { class: "tag" }, part) : part));
}

/** A result with its tags, and the heads of its hits, "[1] title (address):", set back. */
function withHeads(text, tags) {
  const parts = text.split(/(?<=^|>)(\[\d+\] .{1,99}?\(\S+\): )/m);
  return parts.flatMap((part, i) => (i % 2 ? el("span", { class: "head" }, part) : withTags(part, tags)));
}

function fillText(node, box, width, height, line) {
  const lines = Math.max(height < 16 ? 0 : 1, Math.floor((height - 3) / line));
  const text = (kind, content) => el("bdi", { class: kind, dir: "auto" }, content);
  const parts = [
    text("wrote", withTags(node.text.slice(0, 600), node.tree.tags)),
    text("read", withHeads(node.readText.slice(0, 600), node.tree.tags)),
  ];
  parts[0].style.marginTop = `${Math.min(3, (height - 3) % line) / 2}px`;
  box.append(...parts.slice(0, lines > 1 && node.read.length ? 2 : lines ? 1 : 0));
  box.dataset.lines = lines;
}

/** Deals out the lines of the turns' boxes, once they are on the page. */
function dealLines() {
  const boxes = [...parts.tree.querySelectorAll(".turn[data-lines]")].map((box) => {
    const line = parseFloat(getComputedStyle(box).lineHeight);
    const needs = [...box.querySelectorAll("bdi")].map((text) => Math.round(text.scrollHeight / line));
    return { box, needs, lines: Number(box.dataset.lines) };
  }); // all are measured before one is changed, or the page would be laid out once for each
  for (const { box, needs, lines } of boxes) {
    const lower = lowerLines(lines, ...needs);
    [...box.querySelectorAll("bdi")].forEach((text, i) => {
      const own = i ? lower : lines - lower;
      text.style.setProperty("--lines", own);
      text.style.whiteSpace = own > 1 ? "normal" : "nowrap";
      text.classList.toggle("lines", own > 1);
    });
  }
}

/** Of a number of lines those for the result, by how many the turn and the result need. Where these are too many, the
 * turn has a third, since the result is what was decided on. */
function lowerLines(lines, wrote, read = 0) {
  const half = Math.floor(lines / 2);
  if (!read) return 0;
  if (read > half) return Math.min(read, Math.max(lines - wrote, lines - Math.max(1, Math.floor(lines / 3))));
  return Math.max(read, Math.min(half, lines - wrote));
}

// ---------------------------------------------------------------- entropy

const tallest = Math.max(
  0.1,
  ...nodes.map((node) => node.entropies.reduce((most, value) => Math.max(most, value ?? 0), 0)),
);

/** Tokens on a ground that tells their entropy; those that the rule measures are underlined. */
function tinted(node, limit) {
  const k = node.tree.rule.entropy_tokens;
  const pattern = new RegExp(`^(?:${tagPattern(node.tree.tags)})$`);
  return node.tokens.slice(0, limit).map((token, i) => {
    const title = `entropy ${plain(node.entropies[i], 3)} nats; drawn with probability ${plain(Math.exp(node.logprobs[i]), 3)}`;
    const tag = pattern.test(token);
    const made = el("span", { class: `token${i < k ? " first" : ""}${tag ? " tag" : ""}`, title }, token);
    made.style.setProperty("--share", `${Math.round(70 * Math.sqrt((node.entropies[i] ?? 0) / tallest))}%`);
    return made;
  });
}

function fillEntropy(node, box, width, height) {
  const low = height < 34;
  if (!low) box.append(el("bdi", { class: "wrote tokens", dir: "auto" }, tinted(node, MANY)));
  const tall = low ? height - 2 : Math.max(12, Math.min(120, height - 24));
  box.append(bars(node, width - 6, tall));
}

function bars(node, width, height) {
  const k = node.tree.rule.entropy_tokens;
  const wide = Math.min(24, width / node.entropies.length);
  const y = (value) => height - 1 - Math.sqrt(value / tallest) * (height - 2); // or a sure policy's would not be seen
  const path = (from, to) =>
    node.entropies
      .slice(from, to)
      .map(
        (value, i) =>
          `M${((from + i) * wide).toFixed(1)} ${height}V${y(value ?? 0).toFixed(1)}h${(wide * 0.8).toFixed(1)}V${height}z`,
      )
      .join("");
  const line = (value, end, kind) => svg("path", { class: kind, d: `M0 ${y(value)}H${end}` });
  const chart = [
    svg("path", { class: "first", d: path(0, k) }),
    svg("path", { class: "later", d: path(k) }),
    line(node.initial, width, "initial"),
  ];
  if (node.up) chart.push(line(node.measured, Math.min(k, node.entropies.length) * wide, "measured"));
  if (height > 30)
    chart.push(
      svg("text", { x: width - 2, y: 13 }, `${node.up || width < 110 ? "H" : "H_initial"} ${plain(node.measured)}`),
    );
  return svg(
    "svg",
    { class: "bars", width, height },
    svg(
      "title",
      {},
      `H ${plain(node.measured, 3)} over the first ${k} tokens; the path began with ${plain(node.initial, 3)}`,
    ),
    chart,
  );
}

// ---------------------------------------------------------------- credit

function creditHint() {
  const told = {
    soft: "Soft: in each leaf's term of the loss a shared turn has that leaf's advantage, one stripe each.",
    hard: "Hard: a shared turn has the mean advantage of its leaves in all their terms.",
  };
  return `${told[state.credit] ?? `The run's own attribution, ${state.credit}.`} Blue and + make it likelier, orange and − less likely.`;
}

const isAbove = (node, other) => other === node || (other.up !== null && isAbove(node, other.up));

/** One stripe for each leaf below the turn; neighbours of one value are one stripe. */
function fillCredit(node, box, width, height) {
  const below = nodes.filter((other) => other.leaf && other.t === node.t && isAbove(node, other));
  const values = node.tree.credit[state.credit][node.n].filter((_, i) => shown(below[i]));
  const most = Math.max(1e-9, ...node.tree.credit[state.credit].flat().map(Math.abs));
  const runs = [];
  for (const value of values) {
    if (runs.length && runs.at(-1).value === value) runs.at(-1).count += 1;
    else runs.push({ value, count: 1 });
  }
  for (const { value, count } of runs) {
    const tall = (height * count) / values.length;
    const stripe = el(
      "div",
      { class: value < 0 ? "stripe less" : value > 0 ? "stripe more" : "stripe", title: signed(value, 3) },
      tall < 13 ? "" : signed(value),
    );
    stripe.style.flexGrow = count;
    stripe.style.setProperty("--share", `${Math.round((80 * Math.abs(value)) / most)}%`);
    box.append(stripe);
  }
}

// ---------------------------------------------------------------- the panel

function drawPanel() {
  const node = state.selected;
  parts.panel.hidden = !(state.help || (state.open && node)) || (state.view === "packed" && !state.help);
  parts.panel.className = state.help ? "help" : ""; // over the tree, which keeps its room
  if (parts.panel.hidden) return;
  const close = el(
    "button",
    { type: "button", class: "close", title: "key Escape", click: () => show({ open: false, help: false }) },
    "close",
  );
  parts.panel.replaceChildren(close, ...(state.help ? help() : turn(node)));
}

function help() {
  return [
    el(
      "dl",
      { class: "keys" },
      Object.entries(KEYS).flatMap(([keys, told]) => [
        el(
          "dt",
          {},
          keys.split(" ").map((key) => el("kbd", {}, key)),
        ),
        el("dd", {}, told),
      ]),
    ),
  ];
}

/** All of a turn: what was written, what was read, and what the branch rule saw. */
function turn(node) {
  const where = `Turn ${node.depth + 1}, ${state.hidden.size ? "leaves hidden" : leavesOf(node)}`;
  const how = node.rank && node.up ? ", forked off" : "";
  const head = `${where}${how}: ${counted(node.tokens.length, "token")}, H ${plain(node.measured, 3)} nats over the first ${Math.min(node.tokens.length, node.tree.rule.entropy_tokens)}`;
  const found = [
    el("h3", {}, head),
    node.decision ? decisionText(node) : null,
    long("wrote tokens", tinted(node, Infinity), node.text),
  ];
  if (node.result) {
    const seconds = node.result.seconds === null ? "" : ` in ${node.result.seconds.toFixed(2)} s`;
    found.push(
      el(
        "h3",
        {},
        `Result of ${node.call ?? "a malformed call"}: ${node.result.outcome}${seconds}, read as ${counted(node.read.length, "token")}`,
      ),
    );
    found.push(long("read", withTags(node.readText, node.tree.tags), node.readText));
    if (node.result.whole)
      found.push(
        el(
          "details",
          {},
          el("summary", {}, `the whole result, ${counted(node.result.length, "character")}`),
          el("bdi", { class: "read", dir: "auto" }, node.result.whole),
        ),
      );
  }
  return found.filter(Boolean);
}

/** A text, folded where it would fill the screen. */
function long(kind, content, text) {
  const body = el("bdi", { class: kind, dir: "auto" }, content);
  const lines = text.split("\n").length;
  if (text.length < 1200 && lines < 12) return body;
  return el(
    "details",
    { class: "long" },
    el(
      "summary",
      {},
      `${text.slice(0, 80).replaceAll("\n", " ")}… (${counted(lines, "line")}, ${counted(text.length, "character")})`,
    ),
    body,
  );
}

/** What the rule saw; while it is hidden, the class's hands. */
function decisionText(node) {
  if (state.hidden.has(node)) {
    const hands = state.votes.get(node) ?? { fork: 0, not: 0 };
    const button = (id, told, act) => el("button", { type: "button", id, click: act }, told);
    return el(
      "p",
      { class: "decision asked" },
      diamond("asked"),
      "The policy read this result, and its next turn shows how it went on. Was it less certain than at its beginning? Does the rule fork? ",
      el("br"),
      button("yes", `fork (y): ${hands.fork}`, () => vote("fork")),
      button("no", `no fork (n): ${hands.not}`, () => vote("not")),
      button("reveal", "reveal (r)", reveal),
    );
  }
  const { entropy, initial_entropy, delta, prob, bar, new_paths, wave, by_lot } = node.decision;
  const { score, base_prob, entropy_weight, norm, entropy_tokens, entropy_timing } = node.tree.rule;
  const after =
    entropy_timing === "after"
      ? `the next turn's first ${entropy_tokens} tokens`
      : `this turn's first ${entropy_tokens} tokens`;
  const how = score === "entropy" ? `(H_t − H_initial) / ${norm}` : `dealt out anew (${score})`;
  const saw = `Wave ${wave}. H_t ${plain(entropy, 3)} (${after}), H_initial ${plain(initial_entropy, 3)} nats; ΔH = ${how} = ${signed(delta, 4)}; P = ${base_prob} + ${entropy_weight} ΔH = ${plain(prob, 4)} ${wouldFork(node.decision) ? ">" : "≤"} ${bar === null ? "no bar" : plain(bar, 4)}: `;
  const came = {
    forked: counted(new_paths, "new path"),
    refused: "no fork",
    spent: "the rule would fork; no budget is left",
  }[verdict(node)];
  const lot = score === "entropy" && by_lot !== new_paths ? ` By lot it would have been ${by_lot}.` : "";
  return el(
    "p",
    { class: `decision ${verdict(node)}` },
    diamond(verdict(node)),
    saw,
    el("b", {}, `${came}.`),
    lot,
    judged(node),
  );
}

/** Whether the class was right about the rule, whose budget it cannot know: null where it has not voted, or is of two
 * minds. */
function wasRight(node) {
  const hands = state.votes.get(node);
  if (!hands || hands.fork === hands.not || state.hidden.has(node)) return null;
  return hands.fork > hands.not === wouldFork(node.decision);
}

function judged(node) {
  const hands = state.votes.get(node);
  const right = wasRight(node);
  return hands
    ? ` The class: ${hands.fork} for, ${hands.not} against${right === null ? "" : right ? ", right" : ", wrong"}.`
    : "";
}

function score() {
  const judgements = decisions.map(wasRight).filter((right) => right !== null);
  return judgements.length ? `class: right in ${judgements.filter(Boolean).length} of ${judgements.length}` : "";
}

// ---------------------------------------------------------------- the packed sequence

const packedTree = () => (state.selected ?? nodes[0]).tree;

/** The segments of the part that is shown, each with its node, name and tokens. */
function packedSegments() {
  const tree = packedTree();
  state.part %= tree.packed.length;
  const own = nodes.filter((node) => node.tree === tree);
  const { segments } = tree.packed[state.part];
  return segments.map((segment) => {
    const node = own[segment.node] ?? null;
    const sees = segment.sees.map((s) => [segments[s].start, segments[s].start + segments[s].length]);
    return {
      ...segment,
      sees,
      owner: node,
      name: node ? `turn ${node.depth + 1}, ${leavesOf(node)}` : "prompt",
      tokens: node ? [...node.tokens, ...node.read] : tree.prompt,
    };
  });
}

/** The numbers of the leaves that go through a turn. */
function leavesOf(node) {
  const [first, last] = [firstLeaf(node), firstLeaf(node) + node.below - 1];
  return first === last ? `leaf ${first}` : `leaves ${first}–${last}`;
}

/** Where the selected turn begins in the sequence; without one here, the last token that leaf 0's path wrote. */
function firstToken() {
  const segments = packedSegments();
  const ends = segments.find(({ owner }) => owner?.leaf) ?? segments[0];
  return segments.find(({ owner }) => owner && owner === state.selected)?.start ?? ends.start + ends.length - 1;
}

const owning = (segments, token) => segments.findLast((segment) => segment.start <= token);

/** Whether a token sees another: what its segment sees, up to itself. */
const sees = (segment, token, other) =>
  other <= token && segment.sees.some(([begin, end]) => begin <= other && other < end);

function walkPacked(way) {
  const segments = packedSegments();
  const at = segments.indexOf(owning(segments, state.token));
  const last = segments.at(-1).start + segments.at(-1).length - 1;
  const to = {
    left: state.token - 1,
    right: state.token + 1,
    up: segments[Math.max(0, at - 1)].start,
    down: segments[at + 1]?.start ?? last,
  };
  show({ token: Math.max(0, Math.min(last, to[way])) });
}

const SHADES = { sampled: "turn with its result", given: "prompt", chosen: "the chosen token" };

function drawPacked() {
  const segments = packedSegments();
  const total = segments.at(-1).start + segments.at(-1).length;
  const side = Math.max(160, Math.min(parts.tree.clientHeight - 60, parts.tree.clientWidth / 2));
  const canvas = el("canvas", { id: "mask", width: side * 2, height: side * 2, "aria-label": "the attention mask" });
  const table = el("div", { id: "segments" });
  const told = el("p", { id: "token" });
  const update = () => lightUp(segments, table, told, () => paintMask(canvas, segments, total));
  canvas.addEventListener("mousemove", (event) => {
    state.token = Math.max(0, Math.min(total - 1, Math.floor((event.offsetY / canvas.clientHeight) * total)));
    update();
  });
  place(canvas, 0, 0, side, side);
  for (const segment of segments) table.append(segmentRow(segment, update));
  const swatches = Object.entries(SHADES).map(([kind, label]) => el("span", { class: `swatch ${kind}` }, `■ ${label}`));
  const axes = `${counted(total, "token")}: a row for each, and in it what it sees`;
  parts.tree.className = "packed";
  parts.tree.replaceChildren(
    el("div", { class: "sequence" }, told, table),
    el("figure", {}, canvas, el("figcaption", {}, axes, el("br"), swatches)),
  );
  update();
}

function segmentRow(segment, update) {
  const span = `${segment.start}–${segment.start + segment.length - 1}`;
  const positions = `${segment.position}–${segment.position + segment.length - 1}`;
  const tokens = segment.tokens
    .slice(0, 240)
    .map((token, i) => el("span", { class: i < segment.sampled ? "own" : "", "data-token": segment.start + i }, token));
  const hover = (event) => {
    state.token = Number(event.target.dataset.token ?? segment.start);
    update();
  };
  return el(
    "div",
    { class: "segment", mouseover: hover, click: hover },
    el("b", {}, segment.name),
    el("small", {}, `tokens ${span}, positions ${positions}`),
    el("bdi", { dir: "auto" }, tokens),
  );
}

/** Shows which segments and tokens the chosen token sees, and from which one it is predicted. */
function lightUp(segments, table, told, paint) {
  const own = owning(segments, state.token);
  const text = (token) => {
    const segment = owning(segments, token);
    return `“${segment.tokens[token - segment.start]}”`;
  };
  const within = state.token - own.start;
  const before = within ? state.token - 1 : own.before;
  const count = own.sees.reduce((sum, [begin, end]) => sum + Math.max(0, Math.min(end, state.token + 1) - begin), 0);
  const role =
    within < own.sampled
      ? `sampled, so it is trained: predicted from token ${before} ${text(before)}`
      : "read, so it is not trained";
  told.replaceChildren(
    el("b", {}, `token ${state.token} `),
    words(text(state.token)),
    ` of ${own.name}, position ${own.position + within}; sees ${counted(count, "token")}; ${role}`,
  );
  segments.forEach((segment, s) => {
    const row = table.children[s];
    row.className =
      segment === own ? "segment self" : sees(own, state.token, segment.start) ? "segment seen" : "segment unseen";
    for (const token of row.lastChild.children) {
      const number = Number(token.dataset.token);
      const kind = number === state.token ? "now" : sees(own, state.token, number) ? "" : "unseen";
      token.className = [number - segment.start < segment.sampled ? "own" : "", kind].join(" ").trim();
    }
  });
  table.querySelector(".self").scrollIntoView({ block: "nearest" });
  paint();
}

function paintMask(canvas, segments, total) {
  const pen = canvas.getContext("2d");
  const scale = canvas.width / total;
  const colour = (kind) => getComputedStyle(parts.tree.querySelector(`.swatch.${kind}`)).color;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const segment of segments) {
    pen.fillStyle = colour(segment.owner ? "sampled" : "given");
    const [top, end] = [segment.start * scale, (segment.start + segment.length) * scale];
    for (const [begin, stop] of segment.sees)
      if (Math.min(stop, segment.start) > begin)
        pen.fillRect(begin * scale, top, (Math.min(stop, segment.start) - begin) * scale, end - top);
    pen.beginPath();
    for (const point of [
      [top, top],
      [top, end],
      [end, end],
    ])
      pen.lineTo(...point);
    pen.fill();
  }
  pen.fillStyle = colour("chosen");
  const row = owning(segments, state.token);
  for (const [begin, stop] of row.sees)
    if (begin <= state.token)
      pen.fillRect(
        begin * scale,
        state.token * scale,
        (Math.min(stop, state.token + 1) - begin) * scale,
        Math.max(3, scale),
      );
}

// ---------------------------------------------------------------- the beginning

build();
const linked = nodes[Number(location.hash.slice(1) || NaN)];
show(linked ? { selected: linked, open: true } : {});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
