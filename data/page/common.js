"use strict";
// What both kinds of pages need. Strings of the data become text nodes or attributes' values, and never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAGE = document.getElementById("page");

function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** Text that others wrote: it has a direction of its own. */
function words(text, kind = "words") {
  return el("bdi", { class: kind, dir: "auto" }, text);
}

const signed = (value, digits = 2) => (value < 0 ? "−" : value > 0 ? "+" : "") + Math.abs(value).toFixed(digits);
const plain = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
const counted = (count, name) => `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`;
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);

const OUTCOMES = { right: "right", partly: "partly right", wrong: "wrong", none: "no answer", unknown: "answered" };

/** How a leaf is shown: no answer where the format is wrong; unknown where no answer is accepted as right. */
function outcome(leaf, accepted) {
  if (leaf.answer === null) return "none";
  if (!accepted.length) return "unknown";
  return leaf.accuracy >= 1 ? "right" : leaf.accuracy > 0 ? "partly" : "wrong";
}

const SHAPES = {
  right: ["M8 .5a7.5 7.5 0 100 15a7.5 7.5 0 100-15z", "M4.2 8.3l2.7 2.8l5-6"],
  partly: ["M8 .5a7.5 7.5 0 100 15a7.5 7.5 0 100-15z", "M8 .5v15"],
  wrong: ["M1 1h14v14H1z", "M4.5 4.5l7 7m0-7l-7 7"],
  none: ["M8 1L15.5 15H.5z", "M8 6v4.4m0 1.4v1.2"],
  unknown: ["M8 .5a7.5 7.5 0 100 15a7.5 7.5 0 100-15z", ""],
};

/** A leaf's outcome, told by its shape as well as by its colour. */
function mark(kind, size = 16) {
  const [outline, sign] = SHAPES[kind];
  const paths = [svg("path", { d: outline, class: "outline" }), svg("path", { d: sign, class: "sign" })];
  const label = svg("title", {}, OUTCOMES[kind]);
  return svg(
    "svg",
    { class: `mark ${kind}`, viewBox: "0 0 16 16", width: size, height: size, role: "img" },
    label,
    paths,
  );
}

/** The marks of a tree's leaves and how many are right. */
function tally(tree) {
  const kinds = tree.leaves.map((leaf) => outcome(leaf, tree.accepted));
  const right = kinds.filter((kind) => kind === "right").length;
  const told = tree.accepted.length
    ? `${right} of ${kinds.length} right`
    : counted(kinds.length, "leaf").replace("leafs", "leaves");
  return { marks: kinds.map((kind) => mark(kind, 14)), told };
}
