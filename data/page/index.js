// The index of a run: curves, the table, and links to the pages of its trees, whose names the run itself gave.

function draw() {
  const settings = Object.entries(DATA.settings).map(([name, value]) => `${name} ${value}`);
  const pairs = DATA.pages.filter((page) => page.trees.length > 1);
  const steps = DATA.pages.filter((page) => page.trees.length === 1);
  PAGE.replaceChildren(
    el("h1", {}, DATA.title),
    el("p", {}, settings.join(", ")),
    el("h2", {}, "Curves"),
    el("div", { class: "curves" }, DATA.curves.map(curve)),
    ...section("The same questions before and after training", pairs, ["question", "before", "after", ""], pairRow),
    ...section("Trees by step", steps, ["step", "question", "leaves", "right", "mean reward", "forks"], stepRow),
    ...(DATA.table ? [el("h2", {}, "Held-out questions"), el("pre", { id: "table" }, DATA.table)] : []),
  );
}

function section(title, pages, names, row) {
  if (!pages.length) return [];
  const head = el(
    "tr",
    {},
    names.map((name) => el("th", {}, name)),
  );
  return [el("h2", {}, title), el("table", {}, el("thead", {}, head), el("tbody", {}, pages.map(row)))];
}

const cells = (...contents) =>
  el(
    "tr",
    {},
    contents.map((content) => el("td", {}, content)),
  );
const link = (page, label) => el("a", { href: page.file }, label);

function stepRow(page) {
  const [tree] = page.trees;
  const { marks, told } = tally(tree);
  const reward = signed(mean(tree.leaves.map((leaf) => leaf.reward)));
  return cells(link(page, tree.title), words(tree.question), marks, told, reward, `${tree.forks}`);
}

function pairRow(page) {
  const [before, after] = page.trees.map(tally);
  return cells(
    words(page.trees[0].question),
    [...before.marks, ` ${before.told}`],
    [...after.marks, ` ${after.told}`],
    link(page, "both trees"),
  );
}

// ---------------------------------------------------------------- curves

const SIZE = { width: 560, height: 230, left: 44, right: 12, top: 10, bottom: 24 };

/** Many points faintly, under their running mean, since questions differ from step to step. */
function curve({ title, unit, lines }) {
  const all = lines.flatMap(({ points }) => points);
  const caption = el("figcaption", {}, `${title}, ${unit}`);
  if (!all.length) return el("figure", {}, caption, "nothing yet");
  const lastStep = Math.max(1, ...all.map(([step]) => step));
  const [low, high] = [Math.min(0, ...all.map(([, value]) => value)), Math.max(1e-9, ...all.map(([, value]) => value))];
  const x = (step) => SIZE.left + (step / lastStep) * (SIZE.width - SIZE.left - SIZE.right);
  const y = (value) =>
    SIZE.height - SIZE.bottom - ((value - low) / (high - low)) * (SIZE.height - SIZE.top - SIZE.bottom);
  const path = (points) =>
    points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const ticks = [low, (low + high) / 2, high].map((value) =>
    svg("text", { x: SIZE.left - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(2)).toString()),
  );
  const steps = [0, lastStep].map((step) =>
    svg("text", { x: x(step), y: SIZE.height - 6, "text-anchor": "middle" }, `${step}`),
  );
  const frame = svg("path", { class: "axis", d: `M${SIZE.left} ${SIZE.top}V${y(low)}H${SIZE.width - SIZE.right}` });
  const drawn = lines.map(({ points }, i) => {
    const few = points.length < 20;
    const dots = few ? points.map(([step, value]) => svg("circle", { cx: x(step), cy: y(value), r: 3 })) : [];
    return svg(
      "g",
      { class: `s${i}` },
      few ? null : svg("path", { class: "faint", d: path(points) }),
      svg("path", { d: path(running(points)) }),
      dots,
    );
  });
  const chart = svg(
    "svg",
    { class: "curve", viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": title },
    frame,
    ticks,
    steps,
    drawn,
  );
  const sample = (i) =>
    svg(
      "svg",
      { class: "curve sample", width: 34, height: 10 },
      svg("g", { class: `s${i}` }, svg("path", { d: "M0 5H34" })),
    );
  return el(
    "figure",
    {},
    caption,
    chart,
    lines.map(({ name }, i) => el("p", { class: "name" }, sample(i), name)),
  );
}

/** The mean over a tenth of the points, at the last of them; few points stay as they are. */
function running(points) {
  const window = points.length < 20 ? 1 : Math.floor(points.length / 10);
  return points
    .slice(window - 1)
    .map(([step], i) => [step, mean(points.slice(i, i + window).map(([, value]) => value))]);
}

draw();
