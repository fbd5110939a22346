"""Pages for a browser: what they hold, that nothing in them can act, and, in a real one, what they show and do."""

import json
import os
import re
import shutil
from concurrent.futures import Future
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
import torch
from conftest import ScriptedSampler, grow, random_model

from advantage import ADVANTAGES
from arpo import UpdateConfig, pack, split
from data import Question
from data.format import ToolResult
from data.metrics import Scored
from data.pages import PARTS, read_page, source, write_index, write_page
from data.results import Score
from data.views import pieces, tree_view, visible
from rollout import RolloutConfig, Sampler

ARABIC, HEBREW = "عمدة البلدة قديم", "ראש העיר"
ATTACKS = (
    '</script><script>window.hacked = "script"</script>',
    '<img src="http://attacker.example/a.png" onerror="window.hacked = 1">',
    '<a href="javascript:window.hacked = 2" onclick="window.hacked = 3">click</a><svg onload="window.hacked = 4">',
    "<!--<script>-->]]>\u2028\u2029&lt;/script&gt;<style>*{display:none}</style><base href=//attacker.example>",
    '"><iframe srcdoc="<script>parent.hacked = 5</script>"></iframe><meta http-equiv=refresh content="0;//x.example">',
    "${alert(1)} $data $$ \\u003cscript\\u003e \u202eesrever\u202c \x1b[31m\x00",
)


class HostileTools:
    """Answers with everything at once, and long enough to be folded; and says the same in a language of the right."""

    def submit(self, call):
        future = Future()
        future.set_result(ToolResult("\n".join([ARABIC, *ATTACKS, *(f"line {n}" for n in range(500))])))
        return future


@dataclass(frozen=True)
class Both(RolloutConfig, UpdateConfig):
    pass


def script(key, calls):
    """Two turns, the first of them uncertain in the end, and rewards that differ by path."""
    if calls == 0:
        return f"<think>{ATTACKS[0]}</think><search>{HEBREW}</search>", 0.5
    right = hash_of(key) % 2
    return f"<think>{ARABIC}</think><answer>{'7' if right else ATTACKS[1]}</answer><|end|>", 1.5 if right else 0.2


def hash_of(key: str) -> int:
    return sum(map(ord, key))


def scored(tree, question=None, answers=None):
    """A tree with made-up scores that differ from leaf to leaf."""
    answers, scores = answers or [("7", 1.0), ("8", 0.0), (None, 0.0)], []
    for m in range(len(tree.leaves())):
        scores.append(Score(*answers[m % len(answers)], (1.0, 0.0, -1.0)[m % 3], {}, 9, "end"))
    rewards = torch.tensor([score.reward for score in scores])
    return Scored(question or Question("q", "Who?", ("7",)), tree, scores, rewards)


def view(tree, tokenizer, config=None, title="step 1", **rest):
    one = scored(tree, **rest)
    advantages = ADVANTAGES["group"](one.rewards[None], None)[0]
    return tree_view(title, one, advantages, tokenizer, config or RolloutConfig(num_generations=8, num_initial=3))


@pytest.fixture(scope="module")
def hostile(tokenizer, tmp_path_factory):
    """The page of a tree in which question, turns, results and answers attack."""
    config = dict(num_generations=4, num_initial=2, max_result_tokens=900, max_completion_length=6000)
    (tree,) = grow(
        ScriptedSampler(tokenizer, script), ["the town"], tools=HostileTools(), max_turn_tokens=400, **config
    )
    question = Question("q", ATTACKS[1] + ARABIC, ("7", ATTACKS[2]))
    answers = [(ATTACKS[2], 1.0), (ATTACKS[0], 0.0), (None, 0.0)]
    file = tmp_path_factory.mktemp("pages") / "hostile.html"
    write_page(file, "tree", question.question, {"trees": [view(tree, tokenizer, question=question, answers=answers)]})
    return file


@pytest.fixture(scope="module")
def trees(tokenizer):
    """Real trees of a random model, with forks at several depths."""
    return grow(Sampler(random_model(tokenizer), tokenizer), keys=["a", "b"])


# ---------------------------------------------------------------------------------- without a browser


class Tags(HTMLParser):
    """The tags of a page with their attributes, and what stands in its style and its scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.bodies = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem:
            self.bodies.append(data)


def test_a_page_is_one_file_with_its_own_tags_alone(hostile):
    """Guards: a result that ends the block of the data, and then is HTML."""
    text = hostile.read_text()
    tags = Tags(text)
    names = [tag for tag, _ in tags.found]
    assert names == "html head meta meta meta meta title style body main noscript script script".split()
    loading = {"src", "href", "action", "srcset", "style"} | {
        key for _, own in tags.found for key in own if key[:2] == "on"
    }
    assert not any(loading & set(own) for _, own in tags.found)
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert (
        data.isascii()
        and not set("<>&") & set(data)
        and ATTACKS[0] in json.loads(data)["trees"][0]["leaves"][1]["answer"]
    )


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(hostile):
    text = hostile.read_text()
    style, _, script = Tags(text).bodies
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'", "script-src": source(script), "style-src": source(style), "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip


@pytest.mark.parametrize(
    "word",
    [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "http:",
        "https:",
        "fetch(",
        "XMLHttp",
        "import(",
    ],
)
def test_the_scripts_set_text_as_text_and_load_nothing(word):
    found = [
        file.name
        for file in sorted(PARTS.glob("*.js"))
        if word in file.read_text().replace("http://www.w3.org/2000/svg", "")
    ]
    assert found == []


def test_a_page_is_read_back_as_it_was_written(hostile, tmp_path):
    data = read_page(hostile)
    assert data["trees"][0]["question"] == visible(ATTACKS[1] + ARABIC)
    write_page(tmp_path / "again.html", "tree", data["trees"][0]["question"], data)
    assert (tmp_path / "again.html").read_text() == hostile.read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_page(tmp_path / "again.html", "tree", "", {"trees": [float("nan")]})
    # Guards: half a character in a question, which the page's title could not hold, and which ended the run.
    write_page(tmp_path / "again.html", "tree", "a\ud800\u202e\0</title>", {})
    assert "<title>a\\ud800\\u202e\\x00&lt;/title&gt;</title>" in (tmp_path / "again.html").read_text("utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["again.html"]


def test_tokens_join_to_the_text(tokenizer):
    """Guards: characters of several tokens that a page shows as broken ones, and spaces that are lost."""
    text = f"the town 💧 {ARABIC} é {HEBREW} \ufffd <think> a\n  b"
    ids = tokenizer.encode(text) + tokenizer.encode("é")[:1]  # the last one breaks off
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == text + "\ufffd" and pieces(tokenizer, []) == []
    assert visible("a\u202eb\u200cc") == "a\\u202eb\u200cc"


@pytest.mark.parametrize("budget", [8192, 150])
def test_the_packed_sequence_is_the_updates_own(trees, tokenizer, budget):
    """Guards: a drawing of what packing ought to be. From the page's segments all of the batch can be made again."""
    for tree in trees:
        one = scored(tree)
        advantages = ADVANTAGES["group"](one.rewards[None], None)[0]
        found = tree_view("", one, advantages, tokenizer, Both(token_budget=budget))
        D = tree.descends()
        parts = split((tree, D, D), budget)
        assert len(found["packed"]) == len(parts) and (budget > 200 or len(parts) > 1)
        for page, part in zip(found["packed"], parts):
            batch, segments = pack([part]), page["segments"]
            total = sum(segment["length"] for segment in segments)
            mask, positions, before = torch.zeros(total, total, dtype=torch.bool), [], []
            for s in segments:
                rows = range(s["start"], s["start"] + s["length"])
                positions += range(s["position"], s["position"] + s["length"])
                before += [row - 1 if row > s["start"] else s["before"] for row in rows[: s["sampled"]]]
                for seen in (segments[other] for other in s["sees"]):
                    for row in rows:
                        mask[row, seen["start"] : min(seen["start"] + seen["length"], row + 1)] = True
            assert torch.equal(mask, batch.mask) and positions == batch.positions.tolist()
            assert before == batch.predict_from.tolist()


def test_what_a_view_says_of_a_tree(trees, tokenizer):
    tree = trees[0]
    found, D = view(tree, tokenizer), tree.descends()
    assert [node["parent"] for node in found["nodes"]] == [node.parent for node in tree.nodes]
    assert [leaf["node"] for leaf in found["leaves"]] == tree.leaves()
    assert ["".join(node["tokens"]) for node in found["nodes"]] == [
        visible(tokenizer.decode(node.ids)) for node in tree.nodes
    ]
    advantages = [leaf["advantage"] for leaf in found["leaves"]]
    for n, row in enumerate(D):
        own = [advantage for advantage, inside in zip(advantages, row) if inside]
        assert found["credit"]["soft"][n] == own
        assert found["credit"]["hard"][n] == pytest.approx([sum(own) / len(own)] * len(own), abs=1e-4)
    flat = sum(len(tree.nodes[n].ids) for leaf in tree.leaves() for n in tree.path(leaf))
    assert found["savings"]["sampled"] == [sum(len(node.ids) for node in tree.nodes), flat]
    read = sum(len(tree.prompt + sum((tree.nodes[n].observation for n in tree.path(m)), [])) for m in tree.leaves())
    assert found["savings"]["read"] == [len(tree.prompt) + sum(len(n.observation) for n in tree.nodes), read]
    decided = [n for n, node in enumerate(tree.nodes) if node.decision]
    assert [n for n, node in enumerate(found["nodes"]) if node["decision"]] == decided and decided


def test_a_lone_leaf_and_controls_without_a_bar_can_be_shown(tokenizer, tmp_path):
    """Guards: infinity, which JSON lacks: the bar of "best"."""
    sampler = ScriptedSampler(tokenizer, script)
    room = dict(max_turn_tokens=400, max_completion_length=2000)
    (tree,) = grow(sampler, ["the town"], num_generations=1, num_initial=1, **room)
    one = scored(tree)
    alone = tree_view("", one, torch.zeros(1), tokenizer, RolloutConfig())
    (best,) = grow(sampler, ["the town"], branch_rule="best", **room)
    best = view(best, tokenizer)
    assert alone["savings"]["calls"] == [1, 1] and {n["decision"]["bar"] for n in best["nodes"] if n["decision"]} == {
        None
    }
    write_page(tmp_path / "a.html", "tree", "", {"trees": [alone, best]})


def test_pages_stay_small(tokenizer, big):
    """A tree of 64 leaves is less than a megabyte, and a whole result is kept up to a limit."""
    assert 200 < len(read_page(big)["trees"][0]["nodes"]) and os.path.getsize(big) < 1_000_000
    (tree,) = grow(
        ScriptedSampler(tokenizer, script),
        ["the town"],
        tools=Endless(),
        max_turn_tokens=400,
        max_completion_length=2000,
    )
    result = view(tree, tokenizer)["nodes"][0]["result"]
    assert len(result["whole"]) == 20_000 and result["length"] == 40_000


class Endless:
    def submit(self, call):
        future = Future()
        future.set_result(ToolResult("a b " * 10_000))
        return future


@pytest.fixture(scope="module")
def big(tokenizer, tmp_path_factory):
    """The page of a tree of 64 leaves and several hundred turns."""

    def script(key, calls):
        last = calls > 2 + hash_of(key) % 3
        return f"<think>{key}</think>" + ("<answer>7</answer><|end|>" if last else "<search>river</search>"), calls / 2

    settings = dict(num_generations=64, num_initial=16, max_tool_calls=5, max_turn_tokens=80, max_completion_length=900)
    (tree,) = grow(ScriptedSampler(tokenizer, script), ["the town is"], **settings)
    file = tmp_path_factory.mktemp("big") / "big.html"
    write_page(file, "tree", "big", {"trees": [view(tree, tokenizer)]})
    return file


# ---------------------------------------------------------------------------------- in a browser

BROWSERS = "chromium chromium-headless-shell chromium-browser google-chrome google-chrome-stable chrome".split()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: of the system's, or one that playwright has installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as p:
        if not (found or os.path.exists(p.chromium.executable_path)):
            pytest.skip(f"needs a Chromium: one of {', '.join(BROWSERS)} on the PATH, or `playwright install chromium`")
        options = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
        opened = p.chromium.launch(executable_path=found, args=options)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Opens a page's file; in the end it must have asked for nothing else, run nothing else and raised nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    asked, wrong = [], []

    def opened(file, **media):
        page = context.new_page()
        page.emulate_media(**media)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(file.as_uri())
        page.files = {file.as_uri()}
        return page

    yield opened
    files = {url for page in context.pages for url in page.files}
    assert wrong == [] and {url.partition("#")[0] for url in asked} <= files
    context.close()


@pytest.fixture(scope="module")
def forked(tokenizer, tmp_path_factory):
    """A tree of three starts and one fork after each first result, made so that it can be foretold."""

    def script(key, calls):
        if calls == 0:
            return f"<think>the town {key[-1]}</think><search>river</search>", 0.5
        return f"<think>the mayor {key[-1]}</think><answer>{'7' if '.' in key else '8'}</answer><|end|>", 1.5

    settings = dict(num_generations=6, num_initial=3, fan_out=1, branch_rule="threshold", max_turn_tokens=80)
    (tree,) = grow(ScriptedSampler(tokenizer, script), ["the town"], **settings)
    file = tmp_path_factory.mktemp("forked") / "tree.html"
    config = RolloutConfig(**{key: settings[key] for key in ("num_generations", "num_initial")})
    write_page(file, "tree", "Who?", {"trees": [view(tree, tokenizer, config)]})
    return file


def test_the_whole_tree_at_first_sight(open_page, forked):
    page = open_page(forked)
    assert page.locator("h1").inner_text() == "Who?"
    assert page.locator(".turn").count() == 9 and page.locator(".leaf[data-outcome]").count() == 6
    outcomes = [leaf.get_attribute("data-outcome") for leaf in page.locator(".leaf[data-outcome]").all()]
    assert outcomes == ["right", "wrong", "none"] * 2
    assert page.locator(".badge.forked").count() == 3 and "1 new" in page.locator(".badge").first.inner_text()
    told = page.locator("#savings").inner_text()
    assert told.startswith("6 leaves share 9 turns: 3 tool calls instead of 6, ")
    boxes = [turn.bounding_box() for turn in page.locator(".turn").all()]
    assert boxes[0]["height"] > 1.9 * boxes[1]["height"]  # two leaves share it
    bottom = page.locator("#tree").bounding_box()
    assert max(box["y"] + box["height"] for box in boxes) <= bottom["y"] + bottom["height"]
    shapes = {kind: page.locator(f".mark.{kind} .outline").first.get_attribute("d") for kind in outcomes}
    assert len(set(shapes.values())) == 3  # so no colour need be seen


def test_keys_walk_open_and_lead_to_decisions(open_page, forked):
    page, selected = open_page(forked), "[aria-selected=true]"
    for key, place in (
        ("ArrowRight", "n0"),
        ("ArrowRight", "n1"),
        ("ArrowDown", "n2"),
        ("ArrowDown", "n4"),
        ("ArrowLeft", "n3"),
    ):
        page.keyboard.press(key)
        assert page.locator(selected).get_attribute("id") == place
    assert page.url.endswith("#3") and page.locator("#panel").is_hidden()
    page.keyboard.press("Enter")
    assert "Result of search: ok" in page.locator("#panel").inner_text()
    page.keyboard.press("b")
    assert page.locator(selected).get_attribute("id") == "n6"
    panel = page.locator("#panel").inner_text()
    assert "H_t 1.500" in panel and "H_initial 0.500" in panel and "1 new path." in panel
    page.keyboard.press("B")
    assert page.locator(selected).get_attribute("id") == "n3"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert "fork" in page.locator("#panel").inner_text()
    page.locator("#panel .close").click()
    page.locator("#n8").click()
    page.locator("#n8").click()
    assert "leaf 5" in page.locator("#panel").inner_text()


def test_the_class_votes_before_it_sees(open_page, forked):
    """Guards: a verdict that can be read off the tree that it grew."""
    page = open_page(forked)
    page.keyboard.press("p")
    assert page.locator(".turn").count() == 6 and page.locator(".badge.asked").count() == 3
    assert not re.search(r"new|\d\.\d\d\d", "".join(page.locator(".badge").all_inner_texts()))
    assert page.locator(".leaf[data-outcome] span:first-child").all_inner_texts() == [""] * 3  # numbers would have gaps
    assert page.locator("#savings").is_hidden() and "vote" in page.locator("footer").inner_text()
    told = page.locator(".leaves").inner_text()
    assert "+1.00" in told and "advantage" not in told and page.locator(".bar").count() == 0
    for key in "34":
        page.keyboard.press(key)
        assert page.locator("#waits").is_visible() and page.locator(".segment, .stripe, .turn").count() == 0
    page.keyboard.press("1")
    for key in "bYyyNn":
        page.keyboard.press(key)
    panel = page.locator("#panel")
    assert "fork (y): 2" in panel.inner_text() and "no fork (n): 1" in panel.inner_text()
    page.locator("#reveal").click()
    assert page.locator(".turn").count() == 7 and page.locator(".badge.forked").count() == 1
    assert "The class: 2 for, 1 against, right." in panel.inner_text()
    for key in "bnr":
        page.keyboard.press(key)
    assert page.locator("#score").inner_text() == "class: right in 1 of 2"
    page.locator("#hide").click()
    assert page.locator(".turn").count() == 9 and page.locator(".badge.asked").count() == 0
    assert page.locator("#savings").is_visible() and "vote" not in page.locator("footer").inner_text()


def test_hands_are_taken_back(open_page, forked):
    """Guards: a vote typed wrong that could be undone with all others only."""
    page = open_page(forked)
    for key in "pbynnYNN":
        page.keyboard.press(key)
    assert "fork (y): 0" in page.locator("#panel").inner_text() and "(n): 0" in page.locator("#panel").inner_text()
    page.keyboard.press("r")
    assert "The class" not in page.locator("#panel").inner_text() and page.locator("#score").inner_text() == ""
    page.keyboard.press("?")
    assert "back" in page.locator("#panel").inner_text()


def test_of_decisions_that_are_copies_the_first_is_shown(open_page, forked, tmp_path):
    """Guards: a walk over one routine result after another, all of one text; and forks that it would pass by."""

    def copy(tree):
        tree["nodes"][3]["tokens"] = tree["nodes"][6]["tokens"] = tree["nodes"][0]["tokens"]
        tree["nodes"][6]["decision"]["new_paths"] = 0

    page = open_page(changed(forked, tmp_path / "copies.html", copy))
    places = []
    for key in "bbbBB":
        page.keyboard.press(key)
        places.append(page.locator("[aria-selected=true]").get_attribute("id"))
    assert places == ["n0", "n6", "n0", "n6", "n0"]
    page.locator("#n3").click()
    page.keyboard.press("b")
    assert page.locator("[aria-selected=true]").get_attribute("id") == "n6"


def changed(file, to, change):
    """A page with other data, beside those of the test."""
    data = read_page(file)
    change(data["trees"][0])
    write_page(to, "tree", "changed", data)
    return to


def test_a_class_is_right_about_the_rule_whose_budget_it_cannot_know(open_page, forked, tmp_path):
    """Guards: hands for a fork that were called wrong where P was over the bar and no budget was left."""

    def spend(tree):
        tree["nodes"][0]["decision"]["new_paths"] = 0

    page = open_page(changed(forked, tmp_path / "spent.html", spend))
    for key in "pbyr":
        page.keyboard.press(key)
    told = page.locator("#panel").inner_text()
    assert "the rule would fork; no budget is left" in told and "The class: 1 for, 0 against, right." in told


def test_search_and_views(open_page, forked):
    page = open_page(forked)
    page.keyboard.press("/")
    page.keyboard.type("mayor")
    assert page.locator(".hit").count() == 6 and page.locator("#found").inner_text() == "– of 6"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#found").inner_text() == "2 of 6"
    page.keyboard.press("Escape")
    assert page.locator(".hit").count() == 0
    page.keyboard.press("2")
    assert page.locator(".bars .initial").count() == 9 and page.locator(".bars .measured").count() == 6
    page.locator("#credit").click()
    stripes = page.locator("#n0 .stripe").all_inner_texts()
    leaves = page.locator(".leaf[data-outcome] span:nth-of-type(3)").all_inner_texts()
    assert stripes == leaves[:2] and stripes[0] != stripes[1]
    page.keyboard.press("h")
    (hard,) = page.locator("#n0 .stripe").all_inner_texts()
    number = lambda text: float(text.replace("−", "-"))
    assert number(hard) == pytest.approx(sum(map(number, stripes)) / 2, abs=0.011)


def test_the_packed_sequence_in_the_page(open_page, forked):
    page = open_page(forked)
    page.keyboard.press("4")
    rows = page.locator(".segment")
    assert rows.count() == 10 and rows.nth(0).locator("b").inner_text() == "prompt"
    assert "leaf 0" in page.locator(".segment.self").inner_text()  # its last token, which sees its whole path
    assert page.locator(".segment.seen").count() == 2
    for _ in range(8):
        page.keyboard.press("ArrowUp")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert "leaf 1" in page.locator(".segment.self").inner_text()
    assert page.locator(".segment.seen").count() == 2 and page.locator(".segment.unseen").count() == 7
    (segments,) = [part["segments"] for part in read_page(forked)["trees"][0]["packed"]]
    told = page.locator("#token").inner_text()
    assert f"token {segments[3]['start']} " in told and f"predicted from token {segments[3]['before']} " in told
    total, row = segments[-1]["start"] + segments[-1]["length"], segments[3]["start"] + 1
    pixels = """([total, places]) => {
        const mask = document.getElementById("mask"), scale = mask.width / total;
        const pixels = mask.getContext("2d").getImageData(0, 0, mask.width, mask.width).data;
        const at = (place) => Math.floor((place + 0.5) * scale);
        return places.map(([row, column]) => pixels[4 * (at(row) * mask.width + at(column)) + 3] > 0);
    }"""
    places = [(row, segments[1]["start"]), (row, segments[2]["start"]), (0, segments[2]["start"]), (row, row)]
    assert page.evaluate(pixels, [total, places]) == [True, False, False, True]


def test_what_others_wrote_does_nothing(open_page, hostile):
    """Guards: script, handlers, links, frames, styles and directions of writing that a tool's output brings along."""
    page = open_page(hostile)
    for key in "1bbBp23h4p1b":
        page.keyboard.press(key)
    for fold in page.locator("#panel summary").all():
        fold.click()
    panel = page.locator("#panel").inner_text()
    assert [attack for attack in map(visible, ATTACKS) if attack not in panel] == [] and "line 499" in panel
    assert page.evaluate("window.hacked") is None
    assert page.locator("a, img, iframe, form, base, object, main script, main style").count() == 0
    names = page.evaluate("[...document.querySelectorAll('main *')].flatMap((element) => element.getAttributeNames())")
    assert not any(name.startswith("on") for name in names)
    arabic = page.locator("#panel bdi.read").first
    assert page.evaluate("e => getComputedStyle(e).direction", arabic.element_handle()) == "ltr"  # as its first tag is
    assert page.evaluate("e => getComputedStyle(e).unicodeBidi", arabic.element_handle()) in ("isolate", "plaintext")


def test_writing_from_the_right_and_folded_results(open_page, hostile, tokenizer, tmp_path):
    page = open_page(hostile)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#panel details:not([open])").count() >= 1
    assert page.locator("#panel").bounding_box()["height"] < 0.45 * 720
    data = read_page(hostile)
    data["trees"][0]["question"] = ARABIC
    write_page(tmp_path / "right.html", "tree", ARABIC, data)
    page = open_page(tmp_path / "right.html")
    assert page.evaluate("getComputedStyle(document.querySelector('h1 bdi')).direction") == "rtl"


def test_64_leaves_open_in_under_two_seconds(open_page, big):
    page = open_page(big)
    assert page.locator(".leaf[data-outcome]").count() == 64
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # whatever else the machine does
    page.reload()
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < metrics["TaskDuration"] < 2  # seconds
    boxes = page.evaluate("[...document.querySelectorAll('.turn')].map(e => e.getBoundingClientRect().bottom)")
    assert max(boxes) <= 720
    page.keyboard.press("z")
    assert page.locator(".turn").first.bounding_box()["height"] >= 40


class Roads:
    """Answers as a search does, with a word that decides at the end."""

    def submit(self, call):
        future = Future()
        future.set_result(ToolResult("[1] Lanmouth of the long river (742): The road has wells.\n[2] Rakeld (3): no"))
        return future


def long_page(file, tokenizer, turns, **settings):
    """A tree of three leaves and some turns."""

    def script(key, calls):
        if calls < turns - 1:
            return "<think>the town is the river of the mayor</think><search>river</search>", calls / 9
        return "<think>so</think><answer>7</answer><|end|>", 1.0

    settings |= dict(num_generations=3, num_initial=2, max_tool_calls=30, max_turn_tokens=80)
    (tree,) = grow(ScriptedSampler(tokenizer, script), ["the town is"], max_completion_length=3000, **settings)
    write_page(file, "tree", file.stem, {"trees": [view(tree, tokenizer)]})
    return file


@pytest.fixture(scope="module")
def deep(tokenizer, tmp_path_factory):
    return long_page(tmp_path_factory.mktemp("deep") / "deep.html", tokenizer, 25)


@pytest.mark.parametrize("width", [800, 1280])
def test_long_trees_are_moved_sideways_and_their_leaves_stay_in_sight(open_page, deep, width):
    """Guards: turns too narrow to read, and rewards behind the window's edge, without a sign that there is more."""
    page = open_page(deep)
    page.set_viewport_size({"width": width, "height": 720})
    inside = "[...e.querySelectorAll('.leaf > span')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    for key in ("1", "2", "3", "z"):
        page.keyboard.press(key)
        assert page.locator(".turn").first.bounding_box()["width"] > 90
        assert page.evaluate(f"(e => e.scrollWidth > e.clientWidth && {inside})(document.getElementById('tree'))")
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    turn, leaves = (page.locator(name).bounding_box() for name in ("[aria-selected=true]", ".leaves"))
    assert page.locator("[aria-selected=true]").get_attribute("aria-level") == "25"
    assert 0 < turn["x"] and turn["x"] + turn["width"] <= leaves["x"] + 1 and leaves["x"] + leaves["width"] <= width


def test_a_tree_that_goes_on_says_so_and_one_of_nine_turns_fits(open_page, deep, tokenizer, tmp_path):
    """Guards: last turns hidden behind the leaves, with nothing that tells of them."""
    page = open_page(long_page(tmp_path / "nine.html", tokenizer, 9))
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.getElementById('tree'))") <= 1
    assert page.locator("#more").is_hidden() and page.locator(".turn").first.bounding_box()["width"] > 70
    page = open_page(deep)
    told = re.fullmatch(r"turns (\d+)–25 →", page.locator("#more").inner_text())
    turns = [turn.bounding_box() for turn in page.locator(".turn").all()[:25]]  # the first path
    edge = page.locator(".leaves").bounding_box()["x"]
    assert int(told[1]) - 1 == sum(box["x"] + box["width"] <= edge + 1 for box in turns)
    before = page.evaluate("document.getElementById('tree').scrollLeft")
    page.locator("#more").click()
    assert page.evaluate("document.getElementById('tree').scrollLeft") > before
    page.evaluate("document.getElementById('tree').scrollLeft = 9999")
    page.locator("#more").wait_for(state="hidden")


def test_narrow_turns_show_what_decides(open_page, tokenizer, tmp_path):
    """Guards: results cut before their deciding word, by a head that names what was searched for, and by room that the
    turn above does not need; and the mark of the end broken over lines."""
    page = open_page(long_page(tmp_path / "nine.html", tokenizer, 9, tools=Roads(), max_result_tokens=200))
    read = page.locator(".turn .read").first
    assert read.inner_text().startswith("The road has wells.") and "[2] Rakeld (3): no" in read.inner_text()
    assert page.locator(".turn .tag", has_text="<|end|>").count() == 3 == page.get_by_text("<|end|>").count()
    assert not any(tag.is_visible() for tag in page.locator(".turn .tag").all())
    fits = "(e => e.scrollHeight <= e.clientHeight + 1)"
    assert page.evaluate(f"[...document.querySelectorAll('.turn .read')].every({fits})")
    # Lines, and how many the turn and the result need: both fit; one is short; both are long.
    needs = [(8, 3, 3), (7, 2, 5), (7, 6, 1), (7, 9, 9), (4, 3, 3), (3, 3, 2), (2, 1, 4), (1, 1, 1), (5, 3, 0)]
    assert page.evaluate("needs => needs.map((need) => lowerLines(...need))", needs) == [4, 5, 1, 5, 3, 2, 1, 0, 0]
    page.set_viewport_size({"width": 3000, "height": 720})
    page.get_by_text("<|end|>").first.wait_for()
    assert read.inner_text().startswith("<result>[1] Lanmouth")


def test_the_keys_lie_over_the_tree_and_leave_it_its_room(open_page, deep):
    page = open_page(deep)
    for height in (720, 400):
        page.set_viewport_size({"width": 800, "height": height})
        before = page.locator("#tree").bounding_box()
        page.keyboard.press("?")
        box = page.locator("#panel").bounding_box()
        assert page.locator("#tree").bounding_box() == before
        assert 0 <= box["x"] and box["x"] + box["width"] <= 800 and 0 <= box["y"] and box["y"] + box["height"] <= height
        page.keyboard.press("Escape")
        assert page.locator("#panel").is_hidden()


def test_text_that_is_cut_ends_in_dots(open_page, deep):
    page = open_page(deep)
    styles = page.evaluate(
        "[...document.querySelectorAll('.turn > bdi')].filter(e => e.scrollHeight > e.clientHeight + 1 || "
        "e.scrollWidth > e.clientWidth).map(e => [getComputedStyle(e).textOverflow, e.className.includes('lines')])"
    )
    assert styles and all(overflow == "ellipsis" for overflow, _ in styles)


def test_in_the_dark(open_page, forked):
    light, dark = (open_page(forked, color_scheme=scheme) for scheme in ("light", "dark"))
    colours = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in (light, dark)]
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 21, 24)"]


def test_the_index_of_a_run(open_page, trees, tokenizer, tmp_path):
    """Curves, the table, trees by step, and the same question before and after."""
    (tmp_path / "trees").mkdir()
    rows = [{"step": 0, "dev_accuracy": 0.5}, *({"step": n, "reward": n / 9, "accuracy": 0.5} for n in range(1, 30))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"algo": "arpo", "model": "m" * 200, "seed": 0}}))
    (tmp_path / "table.txt").write_text(f"accuracy {ATTACKS[0]}")
    before, after = (view(tree, tokenizer, title=title) for tree, title in zip(trees, ("before", "after")))
    for name, *views in (("step_0001", before), ("step_0010", after), ("question_1", before, after)):
        write_page(tmp_path / "trees" / f"{name}.html", "tree", "q", {"trees": views, "index": "../index.html"})
    page = open_page(write_index(tmp_path))
    drawn = page.locator(".curve:not(.sample) g path:not(.faint)").evaluate_all("found => found.map(p => p.outerHTML)")
    assert len(drawn) == 3 and not any("NaN" in path for path in drawn)
    assert page.locator("#table").inner_text() == f"accuracy {ATTACKS[0]}"
    page.set_viewport_size({"width": 800, "height": 720})
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    links = [link.get_attribute("href") for link in page.locator("a").all()]
    assert links == ["trees/question_1.html", "trees/step_0001.html", "trees/step_0010.html"]
    page.files |= {(tmp_path / link).as_uri() for link in links} | {(tmp_path / "index.html").as_uri()}
    page.locator("a").first.click()
    assert page.locator(".band").count() == 2 and page.locator(".leaf[data-outcome]").count() == 16
    page.locator("header a").click()
    assert page.locator("h1").inner_text() == tmp_path.name
