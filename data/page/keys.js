// The keys of a tree's page.

const KEYS = {
  "1 2 3 4": "text, entropy, credit, packed sequence",
  "← → ↑ ↓": "parent, child, the turn above or below",
  Enter: "open the turn, and close it",
  "b B": "next and previous decision of the branch rule; of copies the first",
  p: "hide the verdicts and what came of them; show all",
  "y n r": "a hand for a fork, a hand against it, reveal",
  "Y N": "take back a hand for, a hand against",
  h: "credit soft, hard, or as the run has it",
  "/": "search; Enter goes on, Escape ends it",
  z: "rows high enough to read, or all at once",
  m: "next part of the packed sequence",
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === parts.find) {
    if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") {
      parts.find.value = "";
      search();
      parts.find.blur();
    }
    return;
  }
  const actions = {
    1: () => show({ view: "text" }),
    2: () => show({ view: "entropy" }),
    3: () => show({ view: "credit" }),
    4: () => show({ view: "packed", token: firstToken() }),
    b: () => step(1),
    B: () => step(-1),
    p: hideOrShow,
    y: () => vote("fork"),
    n: () => vote("not"),
    Y: () => vote("fork", -1),
    N: () => vote("not", -1),
    r: reveal,
    h: otherCredit,
    m: () => show({ part: state.part + 1, token: 0 }),
    z: () => show({ readable: !state.readable }),
    "?": () => show({ help: !state.help, open: false }),
    "/": () => parts.find.focus(),
    Escape: () => show({ open: false, help: false }),
    Enter: () => state.selected && show({ open: !state.open, help: false }),
    ArrowLeft: () => walk("left"),
    ArrowRight: () => walk("right"),
    ArrowUp: () => walk("up"),
    ArrowDown: () => walk("down"),
  };
  const onButton = event.target.tagName === "BUTTON" && event.key === "Enter"; // which then does what it says
  if (!actions[event.key] || onButton) return;
  event.preventDefault();
  actions[event.key]();
});

function walk(way) {
  const here = state.selected;
  if (state.view === "packed") return walkPacked(way);
  if (!here) return select(nodes[0]);
  if (way === "left") return select(here.up ?? here);
  if (way === "right") return select(here.children.find(shown) ?? here);
  const column = nodes.filter((node) => node.depth === here.depth && shown(node)); // nodes stand in the order of rows
  select(column[column.indexOf(here) + (way === "up" ? -1 : 1)] ?? here);
}
