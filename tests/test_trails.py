"""The second built-in world: what its rides ask, what the position gives away, and the model that starts on it."""

import random
from collections import Counter
from dataclasses import replace

import pytest

import eval
import train
from data import WORLD_SEEDS
from data.models import TRAILS
from data.trails import BAD, COMMENTS, FORKS_OF_A_RIDE, GOOD, OPENINGS, Trails, wrong_way
from data.worlds import make_world, questions_of


@pytest.fixture(scope="module")
def world():
    return Trails(7)


@pytest.fixture(scope="module")
def questions(world):
    return world.questions(1000, 1)


def test_a_world_is_a_function_of_its_seed(world, questions):
    again = Trails(7)
    assert again.posts == world.posts and again.passages == world.passages
    assert again.questions(1000, 1) == questions and again.questions(5, 1) == questions[:5]
    assert Trails(8).posts != world.posts and world.questions(1000, 2) != questions
    assert len(set(WORLD_SEEDS.values())) == len(WORLD_SEEDS)  # so that no split's rides are another's


def followed(world, question, flaws=None):
    """The posts of an expert's ride, each named by the result before, and its answer."""
    *calls, answer = world.expert(question, flaws)
    texts = {passage.title: passage.text for passage in world.passages}
    for before, call in zip(calls, calls[1:]):
        assert call.content in texts[before.content]
    assert texts[calls[-1].content] == "The end."
    return [call.content for call in calls], answer.content


def test_rides_end_where_the_expert_ends(world, questions):
    """Guards: a question whose accepted answer cannot be read off the results, or is another one."""
    assert len(questions) > 100
    for question in questions:
        posts, answer = followed(world, question)
        assert (answer,) == question.answers and posts[-1] == answer
        assert len(posts) >= 6 and question.family == f"forks{sum(world.posts[name].is_fork for name in posts)}"


def test_a_wrong_way_ends_elsewhere_and_goes_on_as_long(world, questions):
    """Guards: a fork that decides nothing, since its ways meet again, and one that shows by how long the ride is."""
    ends = Counter()
    for question in questions:
        right = world.ride(world.posts[question.plan[0]])
        forks = [post for post in right if post.is_fork]
        assert len(forks) in FORKS_OF_A_RIDE
        for fork in forks:
            wrong = world.posts[wrong_way(fork)]
            assert right[-1].name not in world.ends(wrong)
            assert len(world.ride(wrong)) == len(right) - right.index(fork) - 1
        posts, answer = followed(world, question, random.Random(question.id))
        assert len(posts) == len(right)
        ends[(answer,) == question.answers] += 1
    assert min(ends.values()) > len(questions) / 5  # the expert with flaws often ends elsewhere, and often does not


def test_the_position_does_not_give_a_fork_away(world, questions):
    """Guards: a rule that forks at the second result, say, and looks as if it knew something."""
    depths, wheres = Counter(), Counter()
    for question in questions:
        for depth, post in enumerate(world.ride(world.posts[question.plan[0]]), 1):
            depths[depth, post.is_fork] += 1
            wheres[post.row] += post.is_fork
    shares = {depth: depths[depth, True] / (depths[depth, True] + depths[depth, False]) for depth in range(1, 7)}
    assert sum(share > 0.05 for share in shares.values()) >= 5 and max(shares.values()) < 0.6
    assert len(wheres - Counter()) >= 4


def test_remarks_ask_for_both_ways(world):
    """Guards: a lesson of one bit, as if the path were always right."""
    forks = [post for post in world.posts.values() if post.is_fork]
    assert all((post.right_way == "Path") == (post.remark in BAD) for post in forks)
    assert 0.35 < sum(post.remark in BAD for post in forks) / len(forks) < 0.65
    assert {post.remark for post in forks} == {*BAD, *GOOD}
    habits = [post.road_habit for post in forks if post.remark in BAD]
    assert min(habits) < 0.5 < max(habits)  # so they are unlearned one after the other


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_views_turn_up_with_their_share_and_change_nothing_else(world, questions, share):
    views = make_world(f"trails:{share}", 7)
    assert {name: replace(post, view="") for name, post in views.posts.items()} == world.posts
    assert views.questions(1000, 1) == questions and not any(post.view for post in world.posts.values())
    single = [post for post in views.posts.values() if len(post.ways) == 1]
    assert sum(bool(post.view) for post in single) / len(single) == pytest.approx(share, abs=0.06)
    assert not any(post.view for post in views.posts.values() if post not in single)
    said = Counter()
    for question in questions[:60]:
        for plain, viewed in zip(world.expert(question), views.expert(question)):
            assert (viewed.tool, viewed.content) == (plain.tool, plain.content)
            said[viewed.think.removesuffix(plain.think).strip()] += 1
    assert set(said) <= {"", *COMMENTS} and all(said[word] for word in COMMENTS)


# ---------------------------------------------------------------------------------- the model and its commands


@pytest.fixture(scope="module")
def judged():
    """The shipped model's sampled answers to two dozen questions."""
    config = eval.read_flags("--data trails --count 24 --samples 1 --split test".split())
    task, policy = eval.load_task(config, "test", config.count, eval.make_sandbox(config)), eval.open_policy(config)
    return policy, task, eval.evaluate(policy, task, config, 1, 1.0)


def test_the_shipped_model_has_something_to_learn_and_to_start_from(judged):
    scores = [score for result in judged[2] for score in result.attempts]
    assert 0.1 < sum(score.accuracy for score in scores) / len(scores) < 0.6
    assert sum(score.answer is None for score in scores) <= 2
    assert sum(score.calls >= 6 for score in scores) >= 20


def test_names_are_single_tokens(judged):
    """Guards: names that must be spelled, which a model of this size cannot copy."""
    tokenizer = judged[0].tokenizer
    words = [*Trails(7).posts, *BAD, *GOOD, "Road", "Path", *COMMENTS]
    assert [word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) > 1] == []
    assert len({opening.split()[0] for opening in OPENINGS}) == len(OPENINGS)  # parted by their first word


def test_the_data_choose_the_model():
    assert eval.read_flags(["--data", "trails"]).model == "trails"
    assert eval.read_flags(["--data", "trails:0.3"]).model == "trails"
    assert eval.read_flags([]).model == "tiny" and eval.read_flags(["--model", str(TRAILS)]).data == "trails"
    config = train.read_flags("--data trails:0.3 --output_dir runs/x".split())
    assert (config.model, config.data, config.num_initial) == ("trails", "trails:0.3", 2)


@pytest.mark.parametrize("name", ["trails:2", "trails:1.01", "trails:-1", "trails:", "trails:x"])
def test_a_share_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="expected world, trails") as error:
        questions_of(name, "test")
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("asked, odd", [("Who is the mayor of Torford?", "Who, is, mayor"), ("", "")])
def test_strange_words_are_told(judged, capsys, monkeypatch, asked, odd):
    """Guards: an answer about another world, or a post that no world has, without a word of doubt."""
    monkeypatch.setattr(eval, "open_policy", lambda config: judged[0])
    eval.ask(eval.read_flags(["--data", "trails", "--ask", asked]))
    told = capsys.readouterr()
    assert "answer: " in told.out and (f"has never seen {odd}" in told.err if odd else not told.err)
