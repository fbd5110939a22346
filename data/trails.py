"""A second world made from a seed: posts in rows, ways from each row to the next, and rides to follow to their end.

What stands at a post names the next one, mostly by a single way. At a fork it names a road and a path and says what
the road has: something bad asks for the path, something good for the road. A wrong way looks like a right one, goes
on just as long and ends elsewhere, so that one or two turns of a ride decide it and all others copy a name.
Rides start in different rows, so neither the count of results nor the place in the text says where a fork stands.

At a share of the other posts, `views`, the expert says a word of its own choice first: entropy that decides nothing.
Left out: the Python tool and the browser, for which no ride has a use, and running the search (tools.py).
"""

import random
from dataclasses import dataclass, replace

from data import ANSWER, Action, Passage, Question

BEGINNINGS = "Ba Bel Cor Da Fen Gar Hol Ju Kel Lan Mar Nor Pem Ra Sil Tor Ul Vel Wen Yar".split()  # of names
ENDINGS = (
    "ton ford wick ham stead bury dale gate well moor field cote ley worth port cliff marsh wood hill combe thorpe "
    "beck fold holt rock mouth bridge cross haven keld thwaite wold"
).split()
# What a road may have, each list from the remark at which the expert with flaws takes the road least to most often.
BAD = "wolves ice mud snow thieves holes smoke wasps floods ghosts thorns rats".split()  # on the road: take the path
GOOD = "lamps guards benches wells inns shade songs flowers bread swans music bells".split()  # take the road
SIGHTS = "hills lakes barns crows mills ships towers clouds".split()  # of a view

ROWS, FIRST_ROWS = 8, 3  # rows of posts, and those that rides start in
FORK_ROWS, FORK_SHARE = range(3, 7), 0.35  # rows with forks, and the share of their posts that are forks
FORKS_OF_A_RIDE = (1, 2)  # on the right way
BAD_SHARE = 0.5  # of the forks whose road is bad
# How often the expert with flaws takes the road, at the first and at the last remark of a list. Habits that differ from
# word to word are unlearned one by one: with one habit for all, the likeliest move would change at all forks at once.
TAKES_ROAD = {"bad": (0.45, 0.95), "good": (0.60, 0.99)}
# What a ride may begin with, and what a view may bring to mind: two wordings of one meaning, how often the first.
# The first turn's entropy is what the branch rule compares with: it should lie above a routine turn's, below a fork's.
OPENINGS, FIRST_OPENING = ("I start", "We ride"), 0.94
COMMENTS, FIRST_COMMENT = ("Fine", "Nice"), 0.7


@dataclass(frozen=True)
class Post:
    name: str
    address: str
    row: int
    ways: dict[str, str]  # "Road" or "Path", or both -> the post it leads to; none in the last row
    remark: str = ""  # what the road has, at a fork
    view: str = ""

    @property
    def is_fork(self) -> bool:
        return len(self.ways) == 2

    @property
    def right_way(self) -> str:
        return next(iter(self.ways)) if not self.is_fork else "Path" if self.remark in BAD else "Road"

    @property
    def road_habit(self) -> float:
        """How often the expert with flaws takes the road at this fork."""
        remarks, (least, most) = (BAD, TAKES_ROAD["bad"]) if self.remark in BAD else (GOOD, TAKES_ROAD["good"])
        return least + (most - least) * remarks.index(self.remark) / (len(remarks) - 1)

    @property
    def text(self) -> str:
        """The remark first and the ways in one order: names are copied by the word before them."""
        facts = [f"The road has {self.remark}."] * bool(self.remark) + [f"The view has {self.view}."] * bool(self.view)
        return " ".join([*facts, *(f"{way} {name}." for way, name in self.ways.items())] or ["The end."])


class Trails:
    """Has what `data/world.py:World` has. `views` is the share of posts with one way that have a view."""

    def __init__(self, seed: int, views: float = 0.0):
        self.seed = seed
        rng = random.Random(f"trails {seed}")
        names = [beginning + end for beginning in BEGINNINGS for end in ENDINGS]
        rng.shuffle(names)
        width = len(names) // ROWS
        rows = [names[row * width : (row + 1) * width] for row in range(ROWS)]
        addresses = iter(rng.sample(range(100, 1000), len(names)))
        self.posts: dict[str, Post] = {}
        for row, here in enumerate(rows):
            shift = rng.randint(1, width - 1)
            for place, name in enumerate(here):
                post = Post(name, str(next(addresses)), row, {})
                if row < ROWS - 1:
                    post = _with_ways(post, rows[row + 1][place], rows[row + 1][(place + shift) % width], views, rng)
                self.posts[name] = post
        posts = rng.sample(list(self.posts.values()), len(names))
        self.passages = [Passage(post.name, post.address, post.text) for post in posts]
        self.pages = {passage.address: passage.text for passage in self.passages}

    def questions(self, count: int, seed: int) -> list[Question]:
        """At most `count`: there are about 130 rides with as many forks as FORKS_OF_A_RIDE says."""
        found = []
        for post in self.posts.values():
            ride = self.ride(post)
            forks = [stop for stop in ride if stop.is_fork]
            if post.row >= FIRST_ROWS or len(forks) not in FORKS_OF_A_RIDE:
                continue
            if not any(ride[-1].name in self.ends(self.posts[wrong_way(fork)]) for fork in forks):
                text = f"Where does the ride from {post.name} end?"
                found.append(Question("", text, (ride[-1].name,), f"forks{len(forks)}", plan=(post.name,)))
        random.Random(f"questions {self.seed} {seed}").shuffle(found)
        return [replace(question, id=f"trails{self.seed}-{seed}-{i}") for i, question in enumerate(found[:count])]

    def ride(self, post: Post) -> list[Post]:
        """The right way from a post to the last row."""
        return [post, *self.ride(self.posts[post.ways[post.right_way]])] if post.ways else [post]

    def ends(self, post: Post) -> set[str]:
        """The posts of the last row that any way from a post leads to."""
        return set().union(*(self.ends(self.posts[name]) for name in post.ways.values())) if post.ways else {post.name}

    def expert(self, question: Question, flaws: random.Random | None = None) -> list[Action]:
        """The turns of an expert that rides to the end; with `flaws`, of one that errs at forks as TAKES_ROAD says.

        Its choice of words is no flaw: world, question and post settle it, in another way in each world.
        """
        (start,) = question.plan
        post = self.posts[start]
        turns = [Action(_word(OPENINGS, FIRST_OPENING, f"{self.seed} {start}"), "search", start)]
        while post.ways:
            way = post.right_way
            if flaws and post.is_fork:
                way = "Road" if flaws.random() < post.road_habit else "Path"
            following = post.ways[way]
            comment = [_word(COMMENTS, FIRST_COMMENT, f"{self.seed} {start} {post.name}")] if post.view else []
            turns.append(Action(" ".join([*comment, way, following]), "search", following))
            post = self.posts[following]
        return [*turns, Action(f"End {post.name}", ANSWER, post.name)]


def wrong_way(fork: Post) -> str:
    """The post that the wrong way leads to."""
    return fork.ways["Path" if fork.right_way == "Road" else "Road"]


def _with_ways(post: Post, straight: str, across: str, views: float, rng: random.Random) -> Post:
    """A fork, or a post with one way, perhaps with a view. The same draws are made whatever `views` is."""
    forks, remark, way = rng.random() < FORK_SHARE, rng.choice(BAD if rng.random() < BAD_SHARE else GOOD), rng.random()
    view, sight = rng.random(), rng.choice(SIGHTS)
    if forks and post.row in FORK_ROWS:
        return replace(post, ways={"Road": straight, "Path": across}, remark=remark)
    return replace(post, ways={"Road" if way < 0.5 else "Path": straight}, view=sight if view < views else "")


def _word(wordings: tuple[str, str], first: float, occasion: str) -> str:
    return wordings[random.Random(occasion).random() >= first]
