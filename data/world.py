"""A small world made from a seed: towns, people, guilds and rivers, what is written about them, and questions.

An entity has three facts in a short passage (what a search shows) and two more on a longer page (what the browser
opens). Most have a rival in the corpus that a careless query brings up instead: a namesake in another region, and
then the region is the second word of both names; or an old note with values that no longer hold. Facts name only
entities without a namesake, by one word, which a tiny model copies far better than two. Worlds share their words
and sentence patterns, never their facts.

Questions come in six families. compute: Python; lookup1 to lookup3: search, one to three hops; mixed: search,
then Python; page: search, then browse. An expert answers them, flawlessly or with the flaws stated in FLAWS.
Left out: running the tools (tools.py). The expert writes the calls and knows what they will show.
"""

import random
import re
from dataclasses import dataclass, field, replace
from operator import add, mul, sub

from data import ANSWER, Action, Passage, Question

FAMILIES = ("compute", "lookup1", "lookup2", "lookup3", "mixed", "page")

# How often a flaw shows, each time there is an occasion for it, by family. Where one is above half, even the
# likeliest continuation is wrong; the right one stays likely enough for sampling to find it.
FLAWS: dict[str, dict[str, float]] = {
    # answers before any tool was used, with something made up
    "guess": {"compute": 0.15, "lookup1": 0.04, "lookup2": 0.04, "lookup3": 0.04, "mixed": 0.04},
    # takes what it has just read for the answer
    "stop": {"compute": 0.55, "lookup2": 0.60, "lookup3": 0.36, "page": 0.60},
    # does arithmetic on numbers it has read in its head, wrongly
    "head": {"mixed": 0.58},
    # sends the same search again
    "repeat": {"lookup1": 0.06, "lookup2": 0.06, "lookup3": 0.06, "mixed": 0.06, "page": 0.06},
}

REGIONS = ("Arden", "Brule", "Clune", "Drenn", "Elland", "Fross", "Glenn", "Orkham")
BEGINNINGS = "Ba Bel Cor Da Fen Gar Hol Ju Kel Mar Nor Ra Sil Tor Vel Wen".split()  # of names
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FISH = ("trout", "pike", "perch", "carp", "eel", "salmon", "bream", "roach")
BEASTS = ("lion", "wolf", "bear", "swan", "hare", "stag", "owl", "fox")
TRADES = ("baker", "smith", "weaver", "tailor", "miller", "potter", "mason", "cooper")


@dataclass(frozen=True)
class Kind:
    count: int  # names in a world; namesakes come on top
    endings: str  # of names: they tell the kind
    links: dict[str, str]  # attribute -> kind of entity that it names
    number: tuple[str, str]  # the attribute that is a number, and its unit
    hidden_number: tuple[str, str]  # the same, on the page only
    hidden_word: tuple[str, tuple[str, ...]]  # an attribute on the page only, and the values it may take
    filler: tuple[str, ...]  # sentences of the page that answer no question


KINDS = {
    "town": Kind(
        50, "ton ford wick ham stead",
        {"mayor": "person", "river": "river"}, ("tax", "coins"), ("height", "feet"), ("market", DAYS),
        ("The road to it is old and well kept.", "Most of its roofs are red.",
         "It burned down once and was built again in stone.", "On clear nights one can see its lights from the hills.",
         "Travellers praise the inn behind the gate.", "Its walls were never taken in a war."),
    ),
    "person": Kind(
        50, "lin mir dan rik tha bert gund",
        {"home": "town", "guild": "guild"}, ("pay", "coins"), ("age", "years"), ("trade", TRADES),
        ("They like long walks in the hills.", "They rise early and are never late.",
         "As a child they wanted to see the sea.", "Friends say that they laugh a lot.",
         "They once walked all night in the snow.", "They play the flute on clear nights."),
    ),
    "guild": Kind(
        45, "mark helm crown shield",
        {"master": "person", "hall": "town"}, ("fee", "coins"), ("debt", "coins"), ("crest", BEASTS),
        ("It is known for its long dinners.", "New people wait a year before they may join.",
         "It owns a red house behind the gate.", "It was never late with its bread for the poor.",
         "Its songs are old and long.", "It once built a road in the hills."),
    ),
    "river": Kind(
        45, "brook flow mere burn",
        {"ferryman": "person", "port": "town"}, ("length", "miles"), ("depth", "feet"), ("fish", FISH),
        ("It is slow in summer and wild in spring.", "Children swim in it on warm nights.",
         "Old stone bridges cross it.", "It comes down from the hills in the snow.",
         "Travellers praise the road along it.", "It once took a red house with it."),
    ),
}  # fmt: skip


@dataclass
class Entity:
    name: str  # "Baton", or with namesakes "Baton Arden"
    kind: str
    address: str
    title: str
    facts: dict[str, str] = field(default_factory=dict)  # of the passage, and of the page
    hidden: dict[str, str] = field(default_factory=dict)  # of the page only
    rival: "Entity | None" = None


@dataclass(frozen=True)
class Find:
    """A goal: learn an attribute of an entity, by its passage, or by its page where the passage lacks it."""

    attribute: str
    entity: str | None = None  # None: the one that was found last


@dataclass(frozen=True)
class Calculate:
    """A goal: evaluate an expression, in which {0}, {1} stand for the values found so far."""

    expression: str


class World:
    def __init__(self, seed: int):
        self.seed = seed
        rng = random.Random(f"world {seed}")
        self.entities: dict[str, Entity] = {}  # by name, without the old notes
        for kind in KINDS:
            self._add_entities(kind, rng)
        by_kind = {
            kind: [e.name for e in self.entities.values() if e.kind == kind and e.rival is None] for kind in KINDS
        }
        for entity in self.entities.values():
            _add_facts(entity, by_kind, rng)
        old = [_old_note(entity, by_kind, rng) for entity in self.entities.values() if entity.rival is None]
        documents = [*self.entities.values(), *filter(None, old)]
        rng.shuffle(documents)
        self.passages = [Passage(e.title, e.address, _passage_text(e, rng)) for e in documents]
        self.pages = {p.address: _page_text(e, p.text, rng) for e, p in zip(documents, self.passages, strict=True)}

    def _add_entities(self, kind: str, rng: random.Random) -> None:
        """Names of one kind, two in five of them in two regions."""
        names = [beginning + end for beginning in BEGINNINGS for end in KINDS[kind].endings.split()]
        numbers = iter(rng.sample(range(10, 100), 90))
        for name in rng.sample(names, KINDS[kind].count):
            group = [f"{name} {region}" for region in rng.sample(REGIONS, 2)] if rng.random() < 0.4 else [name]
            entities = [Entity(full, kind, f"{kind}/{next(numbers)}", full) for full in group]
            if len(entities) == 2:
                entities[0].rival, entities[1].rival = entities[1], entities[0]
            self.entities.update((entity.name, entity) for entity in entities)

    def questions(self, count: int, seed: int, families: tuple[str, ...] = FAMILIES) -> list[Question]:
        """Distinct questions, the families taking turns."""
        rng = random.Random(f"questions {self.seed} {seed}")
        found: dict[str, Question] = {}
        for _ in range(20 * count):
            if len(found) == count:
                return list(found.values())
            family = families[len(found) % len(families)]
            text, plan = _compute(rng) if family == "compute" else self._ask(family, rng)
            question = Question(f"world{self.seed}-{seed}-{len(found)}", text, (), family, plan=plan)
            answer = self.expert(question)[-1].content
            found.setdefault(text, replace(question, answers=(answer,)))
        raise ValueError(f"world {self.seed} has fewer than {count} questions of {', '.join(families)}")

    def _ask(self, family: str, rng: random.Random) -> tuple[str, tuple]:
        entity = rng.choice(list(self.entities.values()))
        if family == "mixed":
            return self._ask_mixed(entity, rng)
        path, kind = [], entity.kind
        for _ in range({"lookup2": 1, "lookup3": 2}.get(family, 0)):
            path.append(rng.choice(list(KINDS[kind].links)))
            kind = KINDS[kind].links[path[-1]]
        words = KINDS[kind]
        if family == "page":
            path.append(rng.choice((words.hidden_number[0], words.hidden_word[0])))
        else:
            path.append(rng.choice((*words.links, words.number[0])))
        who = "Who" if words.links.get(path[-1]) == "person" else "What"
        chain = " of ".join(f"the {attribute}" for attribute in reversed(path))
        plan = (Find(path[0], entity.name), *map(Find, path[1:]))
        return f"{who} is {chain} of {entity.name}?", plan

    def _ask_mixed(self, entity: Entity, rng: random.Random) -> tuple[str, tuple]:
        attribute = KINDS[entity.kind].number[0]
        what = f"What is the {attribute} of {entity.name}"
        first = Find(attribute, entity.name)
        if rng.random() < 0.5:
            factor = rng.randint(3, 9)
            return f"{what} times {factor}?", (first, Calculate(f"{{0}}*{factor}"))
        other = rng.choice(list(self.entities.values()))
        second = Find(KINDS[other.kind].number[0], other.name)
        return f"{what} plus the {second.attribute} of {other.name}?", (first, second, Calculate("{0}+{1}"))

    def expert(self, question: Question, flaws: random.Random | None = None) -> list[Action]:
        """The steps of an expert that answers the question; with `flaws`, of one that errs as FLAWS says."""
        return Expert(self, question, flaws).steps()


class Expert:
    """Works through a plan. Each thought already holds what its action needs, so a tiny model copies it in two
    easy steps; and its first words say what kind of step it is, so a decision is one token after a result."""

    def __init__(self, world: World, question: Question, flaws: random.Random | None):
        self.world, self.question, self.flaws = world, question, flaws
        self.turns: list[Action] = []
        self.values: list[str] = []  # what the goals so far have found
        self.have = ""  # the name of the last of them

    def steps(self) -> list[Action]:
        truth = self.question.answers[0] if self.question.answers else ""
        if self.errs("guess"):
            return [self.guess(truth)]
        for goal in self.question.plan:
            if self.values and self.errs("stop"):
                break
            if isinstance(goal, Find):
                self.find(goal)
            elif self.errs("head"):
                return [*self.turns, self.guess(truth)]
            else:
                expression = goal.expression.format(*self.values)
                self.turns.append(Action(self.thought("compute"), "python", expression))
                self.learn("result", evaluate(expression))
        return [*self.turns, Action(f"Found {self.have} {self.values[-1]}.", ANSWER, self.values[-1])]

    def find(self, goal: Find) -> None:
        name = goal.entity or self.values[-1]
        search = Action(self.thought(f"need the {goal.attribute}"), "search", name)
        self.turns += [search, search] if self.errs("repeat") else [search]
        entity = self.world.entities[name]
        if goal.attribute in entity.facts:
            self.learn(goal.attribute, entity.facts[goal.attribute])
        elif self.errs("stop"):  # the passage has a number, if not the one that was asked for
            self.learn(goal.attribute, entity.facts[KINDS[entity.kind].number[0]])
        else:
            self.turns.append(Action("I open the page.", "browse", f"{entity.address} {goal.attribute}"))
            self.learn(goal.attribute, entity.hidden[goal.attribute])

    def thought(self, intention: str) -> str:
        return f"With {self.have} {self.values[-1]} I {intention}." if self.values else f"I {intention}."

    def learn(self, attribute: str, value: str) -> None:
        self.have = attribute.capitalize()
        self.values.append(value)

    def errs(self, flaw: str) -> bool:
        return self.flaws is not None and self.flaws.random() < FLAWS[flaw].get(self.question.family, 0.0)

    def guess(self, truth: str) -> Action:
        """A wrong answer: another number of about the same size, or some other name."""
        if truth.isdigit():
            made_up = int(truth) + self.flaws.choice((-1, 1)) * self.flaws.randint(1, int(truth) // 4 + 1)
        else:
            made_up = self.flaws.choice([name for name in self.world.entities if name != truth])
        return Action(f"I guess {made_up}.", ANSWER, str(made_up))


def copyable(number: str) -> bool:
    """No digit twice: a tiny model can then copy it by what stood before each digit."""
    return number.isdigit() and len(set(number)) == len(number)


def two_digits(rng: random.Random) -> str:
    return rng.choice([str(number) for number in range(12, 99) if copyable(str(number))])


def _compute(rng: random.Random) -> tuple[str, tuple]:
    """A question of two steps, all of whose numbers are copyable."""
    while True:
        a, b, c = two_digits(rng), two_digits(rng), str(rng.randint(3, 9))
        text, first, second = rng.choice(
            (
                (f"What is {a} times {c} minus {b}?", f"{a}*{c}", f"{{0}}-{b}"),
                (f"What is {a} times {c} plus {b}?", f"{a}*{c}", f"{{0}}+{b}"),
                (f"What is the sum of {a} and {b}, times {c}?", f"{a}+{b}", f"{{0}}*{c}"),
            )
        )
        results = evaluate(first), evaluate(second.format(evaluate(first)))
        if all(map(copyable, results)):
            return text, (Calculate(first), Calculate(second))


def evaluate(expression: str) -> str:
    left, operator, right = re.fullmatch(r"(\d+)([-+*])(\d+)", expression).groups()
    return str({"+": add, "-": sub, "*": mul}[operator](int(left), int(right)))


def _add_facts(entity: Entity, by_kind: dict[str, list[str]], rng: random.Random) -> None:
    kind = KINDS[entity.kind]
    entity.facts = {attribute: rng.choice(by_kind[target]) for attribute, target in kind.links.items()}
    entity.facts[kind.number[0]] = two_digits(rng)
    word, values = kind.hidden_word
    entity.hidden = {kind.hidden_number[0]: two_digits(rng), word: rng.choice(values)}


def _old_note(entity: Entity, by_kind: dict[str, list[str]], rng: random.Random) -> Entity | None:
    """Two in three entities without a namesake have a note with values of another time."""
    if rng.random() > 0.67:
        return None
    old = Entity(entity.name, entity.kind, entity.address + "b", f"Old note: {entity.name}")
    _add_facts(old, by_kind, rng)
    entity.rival = old
    return old


def _passage_text(entity: Entity, rng: random.Random) -> str:
    """A capital attribute and right after it its value, here, on pages and in thoughts: the easiest thing to copy."""
    number, unit = KINDS[entity.kind].number
    facts = [
        f"{name.capitalize()} {value}{' ' + unit if name == number else ''}." for name, value in entity.facts.items()
    ]
    rng.shuffle(facts)
    return " ".join(
        [f"A {entity.kind}." if entity.title == entity.name else f"As the {entity.kind} was long ago.", *facts]
    )


def _page_text(entity: Entity, passage: str, rng: random.Random) -> str:
    kind = KINDS[entity.kind]
    number, unit = kind.hidden_number
    word = kind.hidden_word[0]
    facts = [f"{number.capitalize()} {entity.hidden[number]} {unit}.", f"{word.capitalize()} {entity.hidden[word]}."]
    body = facts + list(kind.filler)
    rng.shuffle(body)
    return " ".join([passage, *body])
