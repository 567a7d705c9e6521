# SPDX-License-Identifier: Apache-2.0
"""Learned lists against counts in plain Python, and a choice of lists by its formula."""

import math
import random
from collections import Counter

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from microspec_kernels import ActiveVocab
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import FLOOR_SHARE, LearnedLists, LearnedVocab, prior_of_tokenizer

V = 60
TOPICS = [range(0, 20), range(20, 40), range(40, 60)]


def texts(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Draw prompts and texts of three topics, each with tokens of its own and some of others."""
    draw = random.Random(seed)

    def words(topic: range, n: int) -> list[int]:
        return [draw.choice(topic) if draw.random() < 0.8 else draw.randrange(V) for _ in range(n)]

    drawn = [draw.choice(TOPICS) for _ in range(count)]
    return [(words(topic, 12), words(topic, 15)) for topic in drawn]


class PlainLists:
    """The same lists, from their definition."""

    def __init__(self, num_lists: int) -> None:
        self.prompts = [Counter[int]() for _ in range(num_lists)]
        self.texts = [Counter[int]() for _ in range(num_lists)]
        self.num_texts = [0] * num_lists

    def score(self, number: int, prompt: list[int]) -> float:
        score = 0.0
        for token in set(prompt):
            everywhere = sum(prompts[token] for prompts in self.prompts)
            common = (everywhere + 0.5) / (sum(self.num_texts) + 1)
            own = (self.prompts[number][token] + 4 * common) / (self.num_texts[number] + 4)
            score += math.log(own / common)
        return score

    def begin(self, prompt: list[int]) -> int:
        scores = [self.score(number, prompt) for number in range(len(self.texts))]
        chosen = max(range(len(scores)), key=lambda number: (round(scores[number], 9), -number))
        self.prompts[chosen].update(set(prompt))
        self.num_texts[chosen] += 1
        return chosen

    def order(self, number: int, prior: list[int]) -> list[int]:
        own, total = self.texts[number], sum(self.texts, Counter())
        place = {token: i for i, token in enumerate(prior)}
        return sorted(range(V), key=lambda t: (-own[t], -total[t], place.get(t, V), t))


def by_recency(vocab: ActiveVocab, group: int) -> list[int]:
    """Return a group's tokens, the most recent first."""
    return vocab.ids[group][vocab.slot_stamps[group].argsort(descending=True)].tolist()


@pytest.mark.parametrize("num_lists", [1, 2, 3, 8])
def test_lists_are_those_of_the_definition(num_lists: int) -> None:
    prior = [7, 59, 3]
    lists = LearnedLists(V, num_lists=num_lists, num_requests=2, prior=prior)
    plain, vocab = PlainLists(num_lists), ActiveVocab(V, 24, num_groups=2)
    chosen = Counter()
    for number, (prompt, text) in enumerate(texts(40)):
        request = number % 2
        lists.begin(request, torch.tensor([*prompt, *prompt[:3], -1]))
        own = plain.begin(prompt) if num_lists > 1 else 0
        chosen[own] += 1
        assert int(lists.request_lists[request]) == own
        other = vocab.state_dict()
        lists.fill(vocab, request)
        assert by_recency(vocab, request) == plain.order(own, prior)[:24]
        assert torch.equal(vocab.ids[1 - request], other["ids"][1 - request])
        for part in (text[:4], text[4:], text[2:6]):
            tokens = torch.tensor([*part, -1])
            lists.count(tokens, token_requests=torch.full_like(tokens, request))
        plain.texts[own].update(set(text))
        assert [Counter(dict(enumerate(row))) for row in lists.text_counts.tolist()] == plain.texts
        assert lists.num_texts.tolist() == (
            [sum(chosen.values())] if num_lists == 1 else plain.num_texts
        )
    if num_lists == 3:  # three topics, three lists: each has found its own
        first = [set(plain.order(number, prior)[:15]) for number in range(3)]
        topics = [max(TOPICS, key=lambda topic: len(tokens & set(topic))) for tokens in first]
        assert len(set(topics)) == 3


def test_a_text_that_ends_is_forgotten_by_its_request() -> None:
    """The next text of the request counts its tokens again; the same text's do not."""
    lists = LearnedLists(V, num_lists=1)
    for _ in range(3):
        lists.begin(0, torch.tensor([1]))
        for _ in range(2):
            lists.count(torch.tensor([5, 5, 9]))
    assert lists.text_counts.nonzero().tolist() == [[0, 5], [0, 9]]
    assert lists.text_counts[0, [5, 9]].tolist() == [3, 3]


def test_what_was_learned_goes_on_after_a_restart() -> None:
    parts = texts(30)
    whole, half = (LearnedLists(V, num_lists=3) for _ in range(2))
    for number, (prompt, text) in enumerate(parts):
        if number == 15:
            again = LearnedLists(V, num_lists=3)
            again.load_state_dict(half.state_dict())
            half = again
        for lists in (whole, half):
            lists.begin(0, torch.tensor(prompt))
            lists.count(torch.tensor(text))
        assert torch.equal(whole.request_lists, half.request_lists)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor), name


def test_a_shared_vocabulary_pins_what_most_texts_show() -> None:
    """The pinned tokens follow the counts every eight requests; the rest is an LRU."""
    lists = LearnedLists(V, num_lists=2, num_requests=3)
    learned = LearnedVocab(vocab := ActiveVocab(V, 20), lists)
    floor = int(FLOOR_SHARE * 20)
    assert learned.shared and learned.floor == floor == 15
    assert learned.of_prompt(torch.arange(9)).tolist() == [6, 7, 8]  # a sixth of 20, the newest
    own = LearnedVocab(ActiveVocab(V, 20, num_groups=3), LearnedLists(V, num_requests=3))
    assert not own.shared and len(own.of_prompt(torch.arange(9))) == 9
    assert by_recency(vocab, 0)[15:] == list(range(15, 20))  # of the ids' order
    totals = Counter()
    for number, (prompt, text) in enumerate(texts(24), 1):
        learned.begin(number % 3, torch.tensor(prompt))
        pinned = vocab.ids[0][vocab.slot_stamps[0] == 2**63 - 1].tolist()
        if number % 8 == 0:
            assert set(pinned) == set(sorted(range(V), key=lambda t: (-totals[t], t))[:floor])
        assert len(pinned) == floor
        tokens = torch.tensor(text)
        learned.vocab.update(tokens)
        lists.count(tokens, token_requests=torch.full_like(tokens, number % 3))
        totals.update(set(text))
        assert bool(vocab.contains(tokens[-5:]).all())


def test_bad_arguments_are_refused() -> None:
    lists = LearnedLists(V, num_requests=2)
    with pytest.raises(IndexError, match="begin: request: expected 0 to 1, got 2"):
        lists.begin(2, torch.tensor([1]))
    with pytest.raises(IndexError, match="fill: request: expected 0 to 1, got -1"):
        lists.fill(ActiveVocab(V, 8, num_groups=2), -1)
    with pytest.raises(TypeError, match="tokens: expected int32 or int64, got float32"):
        lists.begin(0, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="num_lists: expected at least 1, got 0"):
        LearnedLists(V, num_lists=0)
    with pytest.raises(ValueError, match=r"prior: expected ids in \[0, 60\), got 60"):
        LearnedLists(V, prior=[60])
    with pytest.raises(ValueError, match="fill: vocab: expected"):
        lists.fill(ActiveVocab(V, 8), 0)
    with pytest.raises(ValueError, match="pin: vocab: expected"):
        lists.pin(ActiveVocab(V, 8, num_groups=2), 3)
    with pytest.raises(ValueError, match="expected 1 group or 2"):
        LearnedVocab(ActiveVocab(V, 8, num_groups=3), lists)
    state = lists.state_dict()
    for name, wrong, error in (
        ("text_counts", None, "expected shape"),
        ("num_texts", torch.zeros(3, dtype=torch.int64), "expected shape"),
        ("prompt_counts", state["prompt_counts"].long(), "expected torch.int32"),
        ("text_counts", state["text_counts"] - 1, "counts of at least 0, got -1"),
    ):
        with pytest.raises((ValueError, TypeError), match=error):
            lists.load_state_dict({**state, name: wrong})


def bpe() -> Tokenizer:
    """Train a byte-level BPE on text in which "the" behind a space is the commonest word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["on the way to the other side of the thing"] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    return tokenizer


def test_a_tokenizer_orders_its_tokens() -> None:
    tokenizer = bpe()
    prior = prior_of_tokenizer(tokenizer).tolist()
    assert sorted(prior) == list(range(tokenizer.get_vocab_size()))
    place = {tokenizer.id_to_token(number): i for i, number in enumerate(prior)}
    ids = tokenizer.get_vocab()
    parts = [t for t in ids if len(t) > 1 and t[0] not in "<Ġ"]
    words = [t for t in ids if len(t) > 1 and t[0] == "Ġ"]
    for kind in (parts, words):  # within a kind, in the order of merges
        assert sorted(kind, key=place.get) == sorted(kind, key=ids.get)
    assert place["Ġthe"] < place["th"] and ids["Ġthe"] > ids["th"]
    last = max(place[token] for token in (*parts, *words, "a", "~", "Ġ", "Ċ"))
    assert all(place[token] > last for token in ("<s>", "</s>", "<pad>", "Ã", "ā"))


def test_sentencepiece_bytes_come_last_and_its_line_break_does_not() -> None:
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "e", "▁t"]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    prior = [tokenizer.id_to_token(number) for number in prior_of_tokenizer(tokenizer).tolist()]
    assert set(prior[-2:]) <= {"<unk>", "<s>", "<0xFE>", "<0xFF>"}
    assert prior.index("<0x0A>") < prior.index("<0x00>") > prior.index("▁the")
    assert len(prior) == len(tokens)


def test_tekken_begins_with_text_and_not_with_control_tokens() -> None:
    tokenizer = Tekken().tokenizer
    prior = prior_of_tokenizer(tokenizer).tolist()
    assert sorted(prior) == list(range(131072))
    assert min(prior[:3000]) >= 1000 and set(prior[-1158:]) >= set(range(1000))
    words = tokenizer.vocab()
    assert prior.index(words.index(" the")) < prior.index(words.index("he")) < 500
    assert prior.index(words.index("\n")) < 200 < 130_000 < prior.index(words.index("\x00"))


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(TypeError, match="Tokenizer or a Tekkenizer, got str"):
        prior_of_tokenizer("tokenizer.json")


def test_room_for_more_texts() -> None:
    """A running text goes on: a token that it has shown does not count again."""
    lists, vocab = LearnedLists(V, num_lists=2), ActiveVocab(V, 8)
    learned = LearnedVocab(vocab, lists)
    learned.begin(0, torch.tensor([1, 2]))
    lists.count(torch.tensor([5, 6]))
    chosen = int(lists.request_lists[0])
    learned.reserve(3)
    learned.reserve(2)
    assert (lists.num_requests, lists.request_lists.tolist()) == (3, [chosen, -1, -1])
    lists.count(torch.tensor([5, 7]), token_requests=torch.tensor([0, 0]))
    learned.begin(2, torch.tensor([1, 2]))
    lists.count(torch.tensor([5]), token_requests=torch.tensor([2]))
    assert lists.text_counts.sum(0)[[5, 6, 7]].tolist() == [2, 1, 1]
    assert learned.shared
    own = LearnedVocab(ActiveVocab(V, 8, num_groups=3), lists)
    with pytest.raises(ValueError, match=r"num_requests: expected at most 3, .* got 4"):
        own.reserve(4)
