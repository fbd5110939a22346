// The page of one tree, or of several below each other: its state, and the drawing that all views share.
// Columns are turns and rows are leaves, so that a turn is as high as the leaves that go through it are many.

const nodes = [];
DATA.trees.forEach((tree, t) => {
  const first = nodes.length;
  tree.nodes.forEach((node, n) => {
    nodes.push({
      ...node,
      tree,
      t,
      n,
      id: nodes.length,
      up: node.parent < 0 ? null : nodes[first + node.parent],
      children: [],
    });
  });
  tree.leaves.forEach((leaf, m) => (nodes[first + leaf.node].leaf = { ...leaf, m }));
});
nodes.forEach((node) => {
  if (node.up) node.up.children.push(node);
  node.depth = node.up ? node.up.depth + 1 : 0;
  node.text = node.tokens.join("");
  node.readText = node.read.join("");
  node.measured = mean(node.entropies.slice(0, node.tree.rule.entropy_tokens));
  node.initial = node.up ? node.up.initial : node.measured;
});
const firstLeaf = (node) => node.leaf?.m ?? firstLeaf(node.children[0]);
nodes
  .toReversed()
  .forEach((node) => (node.below = node.leaf ? 1 : node.children.reduce((sum, kid) => sum + kid.below, 0)));
const decisions = nodes
  .filter((node) => node.decision)
  .sort((a, b) => a.t - b.t || a.decision.wave - b.decision.wave || a.id - b.id);

const VIEWS = {
  text: ["Text", "What the policy wrote, and below it what the tool answered. Results are read, never trained on."],
  entropy: [
    "Entropy",
    "Bars: entropy by token, as its square root; full colour where the rule measures, and the line its mean. Dashed: H_initial of the path.",
  ],
  credit: ["Credit", ""],
  packed: [
    "Packed",
    "The sequence of the gradient pass: each shared turn once. A token sees its own path and nothing else.",
  ],
};
const TELLING = { credit: "Credit is dealt out over all leaves", packed: "The sequence has all turns" };
const state = {
  view: "text",
  selected: null,
  open: false, // the panel with the selected turn
  help: false,
  credit: DATA.trees[0].attribution,
  hidden: new Set(), // turns whose verdicts wait for the class
  votes: new Map(), // turn -> hands for and against a fork
  query: "",
  readable: false, // rows high enough to read, however many
  part: 0, // of the packed sequence
  token: 0,
};

const parts = {};
function build() {
  const [tree] = DATA.trees;
  const button = (name, key, label, act) =>
    (parts[name] = el(
      "button",
      { type: "button", id: name, title: `key ${key}`, click: act },
      label,
      el("kbd", {}, key),
    ));
  const views = Object.keys(VIEWS).map((view, i) =>
    button(view, `${i + 1}`, VIEWS[view][0], () => show({ view, token: firstToken() })),
  );
  parts.find = el("input", {
    id: "find",
    type: "search",
    placeholder: "search  /",
    "aria-label": "search",
    input: search,
  });
  parts.found = el("span", { id: "found", role: "status" });
  parts.hint = el("p", { id: "hint" });
  parts.score = el("span", { id: "score" });
  parts.savings = el("span", { id: "savings" }, savings(tree));
  parts.legend = el("footer", {});
  const onward = () => parts.tree.scrollBy({ left: parts.tree.clientWidth / 2 });
  parts.more = el("button", { type: "button", id: "more", click: onward });
  parts.tree = el("section", { id: "tree", role: "tree", "aria-label": "the tree" });
  parts.panel = el("section", { id: "panel", hidden: "", "aria-live": "polite" });
  const accepted = tree.accepted.length
    ? ["accepted: ", tree.accepted.map((answer, i) => [i ? ", " : "", words(answer, "answer")])]
    : ["no accepted answer is known"];
  const acts = [
    button("credits", "h", "", otherCredit),
    button("part", "m", "next part", () => show({ part: state.part + 1, token: 0 })),
    button("decide", "b", "Decisions", () => step(1)),
    button("hide", "p", "", hideOrShow),
    button("zoom", "z", "Zoom", () => show({ readable: !state.readable })),
    button("keys", "?", "Keys", () => show({ help: !state.help, open: false })),
  ];
  PAGE.replaceChildren(
    el(
      "header",
      {},
      el("h1", {}, words(tree.question)),
      el(
        "p",
        { id: "facts" },
        el("b", {}, accepted.flat(2)),
        parts.savings,
        DATA.index ? el("a", { href: DATA.index }, "the run") : null,
      ),
    ),
    el(
      "nav",
      {},
      el("span", { class: "group" }, views),
      el("span", { class: "group" }, acts),
      el("span", { class: "group" }, parts.find, parts.found),
      parts.score,
    ),
    parts.hint,
    parts.tree,
    parts.panel,
    parts.legend,
  );
}

function savings(tree) {
  const { calls, sampled, read } = tree.savings;
  const instead = (counts, name) => `${counted(counts[0], name)} instead of ${counts[1].toLocaleString("en")}`;
  const leaves = `${tree.leaves.length} ${tree.leaves.length === 1 ? "leaf" : "leaves"}`;
  const costs = [instead(calls, "tool call"), instead(sampled, "sampled token"), instead(read, "read token")];
  return `${leaves} share ${counted(tree.nodes.length, "turn")}: ${costs.join(", ")} without sharing`;
}

function legend() {
  const kinds = Object.keys(OUTCOMES).filter((kind) =>
    DATA.trees.some((tree) => tree.leaves.some((leaf) => outcome(leaf, tree.accepted) === kind)),
  );
  const leaves = kinds.map((kind) => el("span", {}, mark(kind, 14), OUTCOMES[kind]));
  const verdicts = { forked: "forked; numbers are ΔH", refused: "ΔH too small", spent: "would fork, budget spent" };
  if (state.hidden.size) verdicts.asked = "vote";
  return [leaves, Object.entries(verdicts).map(([kind, told]) => el("span", {}, diamond(kind), told))].flat();
}

/** What the branch rule said after a turn's result. */
function verdict(node) {
  if (state.hidden.has(node)) return "asked";
  return outcomeOf(node.decision);
}

/** Of a decision: what the rule said, by P and its bar, and whether the budget allowed it. */
const wouldFork = ({ prob, bar }) => prob > (bar ?? -Infinity);
const outcomeOf = (decision) => (decision.new_paths ? "forked" : wouldFork(decision) ? "spent" : "refused");

function diamond(kind, size = 16) {
  const shape = svg("path", { d: "M8 1L15 8L8 15L1 8z" });
  const sign =
    kind === "spent" ? svg("path", { d: "M4 12L12 4" }) : kind === "asked" ? svg("text", { x: 8, y: 12 }, "?") : null;
  return svg("svg", { class: `diamond ${kind}`, viewBox: "0 0 16 16", width: size, height: size }, shape, sign);
}

// ---------------------------------------------------------------- state

function show(changes = {}) {
  Object.assign(state, changes);
  draw();
}

function select(node, changes = {}) {
  if (node) history.replaceState(null, "", `#${node.id}`);
  show({ selected: node, help: false, part: 0, token: 0, ...changes });
}

/** Whether a turn is on the page: what a verdict started that waits for the class is not, nor what came of what was
 * left of the budget, which would tell how many forks there were. */
function there(node) {
  if (!state.hidden.size || !node.rank) return true;
  if (node.up) return !state.hidden.has(node.up.stopped === "probe" ? node.up.up : node.up);
  return (
    node.rank < node.tree.rule.num_initial || !decisions.some((other) => other.t === node.t && state.hidden.has(other))
  );
}

const shown = (node) => there(node) && (!node.up || shown(node.up));

function step(by) {
  const seen = new Set();
  const first = (node) => !seen.has(story(node)) && seen.add(story(node));
  const stops = decisions.filter((node) => shown(node) && first(node));
  if (!stops.length) return;
  const here = decisions.indexOf(state.selected);
  const onward = stops.filter((node) => (decisions.indexOf(node) - here) * by > 0);
  const next = by > 0 ? 0 : -1;
  select(onward.at(next) ?? stops.at(next), { open: true });
}

/** What makes a decision worth a stop: all that stands before it, and what came of it. In copies both are the same. */
function story(node) {
  const above = (other) => (other.up ? above(other.up) : "") + JSON.stringify([other.text, other.readText]);
  return `${node.t} ${outcomeOf(node.decision)} ${above(node)}`;
}

function hideOrShow() {
  state.hidden = new Set(state.hidden.size ? [] : decisions);
  state.votes.clear();
  select(state.selected && shown(state.selected) ? state.selected : null);
}

function reveal() {
  state.hidden.delete(state.selected);
  draw();
}

function vote(hand, by = 1) {
  if (!state.hidden.has(state.selected)) return;
  const hands = state.votes.get(state.selected) ?? { fork: 0, not: 0 };
  hands[hand] = Math.max(0, hands[hand] + by);
  state.votes.set(state.selected, hands);
  if (!hands.fork && !hands.not) state.votes.delete(state.selected);
  draw();
}

function otherCredit() {
  const kinds = Object.keys(DATA.trees[0].credit);
  show({ view: "credit", credit: kinds[(kinds.indexOf(state.credit) + 1) % kinds.length] });
}

const matches = (node) =>
  state.query && `${node.text}\n${node.readText}\n${node.leaf?.answer ?? ""}`.toLowerCase().includes(state.query);

function search() {
  show({ query: parts.find.value.toLowerCase() });
}

function nextMatch(by) {
  const hits = nodes.filter((node) => shown(node) && matches(node));
  const at = hits.indexOf(state.selected);
  if (hits.length) select(hits[at < 0 ? 0 : (at + by + hits.length) % hits.length]);
}

// ---------------------------------------------------------------- drawing

const SIZES = { prompt: 34, head: 22, band: 30 };

function draw() {
  for (const view of Object.keys(VIEWS)) parts[view].setAttribute("aria-pressed", view === state.view);
  parts.credits.firstChild.textContent = `Credit: ${state.credit}`;
  parts.credits.hidden = state.view !== "credit";
  parts.part.hidden = state.view !== "packed" || packedTree().packed.length < 2;
  parts.hide.firstChild.textContent = state.hidden.size ? "Show all" : "Hide verdicts";
  parts.zoom.setAttribute("aria-pressed", state.readable);
  parts.hint.textContent = state.view === "credit" ? creditHint() : VIEWS[state.view][1];
  const hits = nodes.filter((node) => shown(node) && matches(node));
  parts.found.textContent = state.query ? `${hits.indexOf(state.selected) + 1 || "–"} of ${hits.length}` : "";
  parts.score.textContent = score();
  parts.savings.hidden = state.hidden.size > 0 || DATA.trees.length > 1;
  parts.legend.replaceChildren(...legend());
  drawPanel();
  if (TELLING[state.view] && state.hidden.size) drawWaiting();
  else if (state.view === "packed") drawPacked();
  else drawTree();
}

/** In place of a view from which the verdicts could be read. */
function drawWaiting() {
  parts.tree.className = "";
  parts.tree.replaceChildren(
    el("p", { id: "waits" }, `${TELLING[state.view]}, also those that wait for the class: show the verdicts first (p).`),
  );
}

/** Rows and heights of what is shown. */
function layout() {
  let row = 0;
  let bands = 0;
  const place = (node) => {
    const kids = node.children.filter(there);
    Object.assign(node, { row, bands });
    if (kids.length) kids.forEach(place);
    else row += 1;
    node.rows = row - node.row;
  };
  const tops = DATA.trees.map((tree, t) => {
    const top = { row, bands };
    if (DATA.trees.length > 1) bands += 1;
    nodes.filter((node) => node.t === t && !node.up && there(node)).forEach(place);
    return { ...top, rows: row - top.row };
  });
  const { clientWidth, clientHeight } = parts.tree;
  const room = clientHeight - SIZES.head - bands * SIZES.band - 4;
  const height = Math.max(state.readable ? 46 : 7, Math.min(96, room / Math.max(1, row)));
  const columns = Math.max(...nodes.map((node) => node.depth)) + 1;
  const narrow = clientWidth / columns < 205; // many turns: their boxes and the leaves get along with less
  const leaf = (narrow ? 220 : 292) - (state.hidden.size ? 48 : 0); // without the advantage
  const fitting = Math.min(520, (clientWidth - SIZES.prompt - leaf - 16) / columns);
  const least = state.readable ? 210 : 106; // below that the tree is wider than the window, and is moved sideways
  const width = fitting >= least ? fitting : Math.max(least, 134);
  const tight = width < 134;
  const gutter = tight ? 32 : narrow ? 38 : 62;
  const y = (row, bands) => SIZES.head + row * height + bands * SIZES.band;
  return {
    tops,
    height,
    width,
    columns,
    narrow,
    tight,
    line: tight ? 14.75 : 17.5,
    leaf,
    gutter,
    y,
    x: (depth) => SIZES.prompt + 12 + depth * width,
    rows: row,
    bands,
  };
}

function place(element, left, top, width, height) {
  Object.assign(element.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  return element;
}

function drawTree() {
  const plan = layout();
  const links = svg("svg", { class: "links" });
  const leaves = el("div", { class: "leaves" }, leafNames(plan), parts.more); // stays in sight where the tree is moved sideways
  const drawn = [links, heads(plan)];
  DATA.trees.forEach((tree, t) => drawn.push(...drawRoot(tree, plan, plan.tops[t])));
  for (const node of nodes.filter(shown)) drawn.push(...drawNode(node, plan, links, leaves));
  const [right, bottom] = [plan.x(plan.columns), plan.y(plan.rows, plan.bands)];
  place(links, 0, 0, right + plan.leaf, bottom);
  Object.assign(leaves.style, { width: `${plan.leaf}px`, height: `${bottom}px` });
  const canvas = el("div", { class: "canvas" }, leaves, drawn);
  canvas.style.width = `${right + plan.leaf}px`;
  const wide = right + plan.leaf > parts.tree.clientWidth + 1;
  const { narrow, tight } = plan;
  const looks = { dense: plan.height < 30, narrow, tight, brief: plan.width < 215, wide, hides: state.hidden.size };
  parts.tree.className = Object.keys(looks)
    .filter((name) => looks[name])
    .join(" ");
  parts.tree.style.scrollPaddingRight = `${plan.leaf}px`;
  parts.tree.replaceChildren(canvas);
  if (state.view === "text") dealLines();
  parts.tree.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  tellMore(plan);
}

/** Says which turns are behind the leaves, and leads to them. */
function tellMore(plan) {
  const edge = parts.tree.scrollLeft + parts.tree.clientWidth - plan.leaf;
  const first = Array.from({ length: plan.columns }, (_, depth) => plan.x(depth) + plan.width - plan.gutter).findIndex(
    (end) => end > edge + 1,
  );
  parts.more.hidden = first < 0;
  parts.more.textContent = `${first + 1 < plan.columns ? `turns ${first + 1}–` : "turn "}${plan.columns} →`;
  parts.tree.classList.toggle("goes-on", first >= 0);
  parts.tree.onscroll = () => tellMore(plan);
}

function heads(plan) {
  const turns = Array.from({ length: plan.columns }, (_, depth) =>
    place(el("span", {}, `turn ${depth + 1}`), plan.x(depth), 0, plan.width, SIZES.head),
  );
  return el("div", { class: "heads" }, turns);
}

function leafNames(plan) {
  const told = ["leaf", "answer", "reward", ...(state.hidden.size ? [] : ["advantage"])];
  const names = told.map((name) => el("span", {}, name));
  return place(el("div", { class: "leaf names" }, names), 0, 0, plan.leaf, SIZES.head);
}

/** The prompt, which all leaves share, and over several trees the title of each. */
function drawRoot(tree, plan, top) {
  const drawn = [];
  const several = DATA.trees.length > 1;
  if (several) {
    const { marks, told } = tally(tree);
    const reward = `mean reward ${signed(mean(tree.leaves.map((leaf) => leaf.reward)))}`;
    const all = state.hidden.size ? [tree.title] : [`${tree.title}: ${told}, ${reward} `, marks];
    drawn.push(
      place(
        el("h2", { class: "band" }, all.flat()),
        0,
        plan.y(top.row, top.bands),
        plan.x(plan.columns) + plan.leaf,
        SIZES.band,
      ),
    );
  }
  const prompt = el(
    "div",
    { class: "prompt", title: tree.prompt.join("") },
    el("span", {}, `prompt, ${counted(tree.prompt.length, "token")}`),
  );
  drawn.push(place(prompt, 2, plan.y(top.row, top.bands + several) + 1, SIZES.prompt - 8, top.rows * plan.height - 3));
  return drawn;
}

function drawNode(node, plan, links, leaves) {
  const gutter = node.leaf && !node.children.length ? 10 : plan.gutter;
  const [left, top] = [plan.x(node.depth), plan.y(node.row, node.bands)];
  const [width, height] = [plan.width - gutter, node.rows * plan.height - Math.min(4, plan.height / 6)];
  const middle = (other) => plan.y(other.row, other.bands) + (other.rows * plan.height - 4) / 2;
  const kids = node.children.filter(there);
  const box = el("div", {
    class: `turn ${classes(node)}`,
    id: `n${node.id}`,
    role: "treeitem",
    "aria-level": node.depth + 1,
    "aria-selected": node === state.selected,
    click: () => select(node, { open: node === state.selected ? !state.open : state.open }),
  });
  const drawn = [place(box, left, top, width, height)];
  FILL[state.view](node, box, width, height, plan.line);
  const end = left + width;
  for (const kid of kids)
    links.append(
      svg("path", {
        class: kid.rank ? "fork" : "on",
        d: `M${end} ${middle(node)}h${gutter / 6}c${gutter / 2} 0 ${gutter / 3} ${middle(kid) - middle(node)} ${(gutter * 5) / 6} ${middle(kid) - middle(node)}`,
      }),
    );
  if (node.decision) drawn.push(place(badge(node, plan), end + 1, top, gutter - 2, height));
  if (node.leaf && !kids.length) {
    links.append(svg("path", { class: "out", d: `M${end} ${middle(node)}H${plan.x(plan.columns)}` }));
    leaves.append(place(drawLeaf(node, plan.height), 0, top, plan.leaf, height));
  }
  return drawn;
}

function classes(node) {
  const found = [
    node.rank && node.up ? "forked" : "",
    node.stopped,
    state.query ? (matches(node) ? "hit" : "miss") : "",
  ];
  return found.filter(Boolean).join(" ");
}

function badge(node, plan) {
  const height = node.rows * plan.height;
  const kind = verdict(node);
  const { delta, new_paths } = node.decision;
  const told = { asked: "vote", forked: `${new_paths} new`, refused: "no fork", spent: "spent" }[kind];
  const jump = kind === "asked" ? "ΔH ?" : signed(delta, plan.narrow ? 2 : 3);
  const above = height < (plan.narrow ? 48 : 18) ? null : el("span", { class: "above" }, jump);
  const under = height < 48 || plan.narrow ? null : el("span", { class: "under" }, told);
  const title = kind === "asked" ? "hidden" : `ΔH ${signed(delta, 4)}: ${told}`;
  return el(
    "div",
    { class: `badge ${kind}${above && height < 48 ? " low" : ""}`, title, click: () => select(node, { open: true }) },
    above,
    diamond(kind, Math.max(8, Math.min(16, height))),
    under,
  );
}

function drawLeaf(node, height) {
  const { leaf, tree } = node;
  const kind = outcome(leaf, tree.accepted);
  const low = height < 13;
  const hides = state.hidden.size > 0; // numbers have gaps, and an advantage counts the leaves that are not shown
  const texts = [hides ? "" : `${leaf.m}`, signed(leaf.reward), signed(leaf.advantage)].map((text) =>
    el("span", {}, low ? "" : text),
  );
  const answer = words(
    low ? "" : (leaf.answer ?? { length: "out of tokens", calls: "out of calls" }[leaf.end] ?? "wrong format"),
  );
  const shape = mark(kind, Math.max(7, Math.min(18, height - 4)));
  return el(
    "div",
    { class: "leaf", "data-outcome": kind, click: () => select(node) },
    texts[0],
    shape,
    answer,
    texts[1],
    ...(hides ? [] : [texts[2], bar(leaf.advantage, tree, Math.min(8, height - 1))]),
  );
}

/** A bar from the middle: to the right and solid above 0, to the left and open below it. */
function bar(value, tree, height) {
  const width = (19 * Math.abs(value)) / largest(tree);
  const shape = svg("rect", {
    class: value < 0 ? "less" : "more",
    x: value < 0 ? 20 - width : 20,
    y: 1,
    width,
    height,
  });
  return svg("svg", { class: "bar", width: 40, height: height + 2 }, svg("path", { d: `M20 0V${height + 2}` }), shape);
}

const largest = (tree) => Math.max(1e-9, ...tree.leaves.map((leaf) => Math.abs(leaf.advantage)));
