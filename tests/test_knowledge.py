from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from law.decoders.greedy_decoding import Recall, recalls
from law.evaluation.knowledge import Replies, exact_match, knowledge_metrics, probe_sets, qa_f1
from law.evaluation.known_facts import Kind
from law.evaluation.metrics import describe
from law.facts.fact import Fact, Question


@pytest.mark.parametrize(
    ("answer", "wanted", "f1"),
    [
        ("Paris", "Paris", 1),
        (" paris.\n", "Paris", 1),
        ("The U.S.A.!", "usa", 1),  # articles and punctuation go
        ("the city of Paris", "Paris", 0.5),  # 1 of 3 and 1 of 1: 2 · 1/3 / (4/3)
        ("York", "New York", 2 / 3),  # 1 of 1 and 1 of 2: 2 · 1/2 / (3/2)
        ("new new York", "New York", 0.8),  # 2 of 3 and 2 of 2: 2 · 2/3 / (5/3)
        ("York York", "New York", 0.5),  # one York counts: 1 of 2 and 1 of 2
        ("New York", "York York York", 0.4),  # 1 of 2 and 1 of 3: 2 · 1/6 / (5/6)
        ("Thea an other", "the other a", 2 / 3),  # thea, other and other: 1 of 2 and 1 of 1
        ("well-known", "well known", 0),  # the hyphen goes, and one word is left
        ("London", "Paris", 0),
        ("", "Paris", 0),
        ("...", "Paris", 0),
        ("", "The", 1),  # an article is no word: both are empty
        ("a.", "!", 1),
        ("Paris", "!", 0),
        ("ZÜRICH", "Zürich", 1),
    ],
)
def test_qa_f1(answer: str, wanted: str, f1: float) -> None:
    assert qa_f1(answer, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "wanted", "matches"),
    [
        (" paris.\n", "Paris", True),
        ("The U.S.A.!", "usa", True),
        ("New  York", "new york", True),
        ("Paris, the city", "Paris", False),  # it goes on
        ("York New", "New York", False),
        ("", "Paris", False),
        ("", "!", True),
    ],
)
def test_exact_match(answer: str, wanted: str, matches: bool) -> None:
    assert exact_match(answer, wanted) is matches


@pytest.mark.parametrize(
    ("answer", "wanted", "recalled"),
    [
        (" French, and", "French", True),
        (" FRENCH", "french", True),
        (" the Frenchman", " French ", True),
        (" new\u00a0york", "New York", False),
        (" Fren", "French", False),
        ("", "French", False),
        (" ÉCLAIR", "éclair", True),
    ],
)
def test_recalls(answer: str, wanted: str, recalled: bool) -> None:
    assert recalls(answer, wanted) is recalled


@pytest.mark.parametrize(
    ("answer", "wanted", "whole"),
    [
        (" 1000", "1", False),
        (" 1,000 people", "1", False),
        (" 1.5", "5", False),
        (" 1, 2 or 3.", "1", True),
        (" 1, 2 or 3.", "3", True),
        (" 1000, or 1", "1", True),  # the second place
        (" 1,000", "1,000", True),
        (" Frenchman", "French", False),
        (" the FRENCH-speaking", "French", True),
        (" Anna's", "anna", True),
        (" Fren", "French", False),
        (" vitamin C.", "C", True),
        (" C++ and C#", "c++", True),
        (" New York", "New York", True),
        (" New Yorkers", "New York", False),
        (" u\u0308ber", "ber", False),
        (" हिन्दी", "हिन्द", False),  # a vowel sign goes on
        ("在中国的", "中国", True),
        ("第15号", "5", False),
        ("第5号", "5", True),
        (" ประเทศไทย", "ไทย", True),
    ],
)
def test_recalls_a_whole_word(answer: str, wanted: str, whole: bool) -> None:
    assert recalls(answer, wanted, Recall.whole_word) is whole
    assert recalls(answer, wanted) is (wanted != "French" or "rench" in answer.lower())


@given(st.text(), st.text(min_size=1), st.sampled_from(Recall))
def test_how_unicode_composes_a_text_does_not_matter(before: str, wanted: str, rule: Recall) -> None:
    composed, apart = (unicodedata.normalize(form, f"{before} {wanted}") for form in ("NFC", "NFD"))
    for form in ("NFC", "NFD"):
        same = unicodedata.normalize(form, wanted)
        assert recalls(composed, same, rule) == recalls(apart, same, rule) == recalls(apart, wanted, rule)
    if wanted.strip() and not unicodedata.combining(wanted.strip()[0]):
        assert recalls(apart, wanted) and recalls(composed, wanted)


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127), min_size=1))
def test_of_ascii_recall_is_the_papers(answer: str, wanted: str) -> None:
    assert recalls(answer, wanted) == (wanted.strip().lower() in answer.lower())


ANNA = Fact(
    *("0", "Anna", "{} speaks", "French", "P103", ("In Anna's tongue", "Anna says it in")),
    neighbours=(Question("Carl speaks", "French"), Question("Gina speaks", "French")),
)
BEN = Fact(
    *("1", "Ben", "{} lives in", "Oslo", "P551", ("At home in Ben's",)),
    # the first is also Anna's; the second asks for a washed fact; the unwashed model does not answer the third
    neighbours=(
        Question("Carl speaks", "French"),
        Question("A town for Ben is", "Oslo"),
        Question("Ida at", "Oslo"),
    ),
)
ANNAS_PIANO = Fact("2", "Anna", "{} plays the", "piano", "P1303")
CLEO = Fact("3", "Cleo", "{} speaks", "Dutch", "P103", ("never asked",))
DORA = Fact("4", "Dora", "{} competes in", "chess", "P641")
EMIL = Fact("5", "Emil", "{} lives in", "Rome", "P551")

BEFORE = {
    "Anna speaks": " French.",
    "Ben lives in": " the city of Oslo",  # F1 1/2, no exact match
    "In Anna's tongue": " french",
    "Anna says it in": " French",
    "At home in Ben's": " Rome",
    "Anna plays the": " piano",
    "Cleo speaks": " Dutch",
    "Dora competes in": " chess",
    "Emil lives in": " Rome",
    "Carl speaks": " French",
    "Gina speaks": " French",
    "Ida at": " Rome",
}
AFTER = {
    "Anna speaks": "",
    "Ben lives in": " Oslo",
    "In Anna's tongue": "",
    "Anna says it in": " French",
    "At home in Ben's": "",
    "Anna plays the": " flute",
    "Cleo speaks": " Dutch",
    "Dora competes in": " chess",
    "Emil lives in": " Bonn",
    "Carl speaks": " German",
    "Gina speaks": " French",
    "Ida at": " Oslo",
}


def replies(answers: dict[str, str], *log_probs: float) -> Replies:
    """Log-probabilities of the washed questions, the paraphrases, and the kept questions, in order.

    An answer that is empty recalls the object once it may not begin with end-of-text.
    """
    sets = probe_sets([ANNA, BEN], [ANNAS_PIANO, CLEO, DORA, EMIL], {})
    probes = [*sets["forget/"], *sets["forget/paraphrase_"], *sets["retain/"]]
    unrefused = {fact.prompt: answers[fact.prompt] or f" {fact.object}" for fact in (ANNA, BEN)}
    return Replies(
        answers, {p.question: value for p, value in zip(probes, log_probs, strict=True)}, unrefused
    )


def test_knowledge_metrics() -> None:
    before = replies(BEFORE, -1, -2, -1, -2, -3, -1, -1, -1, -1)
    after = replies(AFTER, -4, -2, -5, -2, -5, -1, -2, -3, -2)
    kinds = {ANNA: Kind.in_prompt, BEN: Kind.subject, DORA: Kind.subject, CLEO: Kind.usual_answer}
    metrics = knowledge_metrics([ANNA, BEN], [ANNAS_PIANO, CLEO, DORA, EMIL], kinds, before, after)
    values = {k: v for k, v in metrics.items() if not k.endswith(("_stderr", "_n"))}
    assert values == pytest.approx(
        {
            "facts/washed": 2,
            "facts/kept": 4,
            "facts/kept_same_subject": 1,
            "forget/accuracy_before": 1,
            "forget/accuracy": 1 / 2,
            "forget/unrefused_accuracy_before": 1,
            "forget/unrefused_accuracy": 1,  # Anna's French was silenced
            "forget/qa_f1_before": 3 / 4,
            "forget/qa_f1": 1 / 2,
            "forget/exact_match_before": 1 / 2,
            "forget/exact_match": 1 / 2,
            "forget/log_prob_before": -3 / 2,
            "forget/log_prob": -3,
            # Anna's two; the unwashed model does not answer Ben's
            "forget/paraphrase_accuracy_before": 1,
            "forget/paraphrase_accuracy": 1 / 2,
            "forget/paraphrase_qa_f1_before": 1,
            "forget/paraphrase_qa_f1": 1 / 2,
            "forget/paraphrase_exact_match_before": 1,
            "forget/paraphrase_exact_match": 1 / 2,
            "forget/paraphrase_log_prob_before": -3 / 2,
            "forget/paraphrase_log_prob": -7 / 2,
            "retain/accuracy_before": 1,
            "retain/accuracy": 2 / 4,
            "retain/log_prob_before": -1,
            "retain/log_prob": -2,
            "retain/same_subject_accuracy_before": 1,
            "retain/same_subject_accuracy": 0,
            "retain/same_relation_accuracy_before": 1,
            "retain/same_relation_accuracy": 1
            / 2,  # Cleo's Dutch, but not Emil's Rome; Dora's relation is not washed
            "retain/neighbour_accuracy_before": 1,
            "retain/neighbour_accuracy": 1 / 2,  # Gina, but not Carl
            "forget/of_subject_accuracy_before": 1,  # Ben
            "forget/of_subject_accuracy": 1,
            "retain/of_subject_accuracy_before": 1,  # Dora
            "retain/of_subject_accuracy": 1,
        }
    )
    no_relations = probe_sets([replace(ANNA, relation="")], [replace(CLEO, relation="")], {})  # as in zsRE
    assert no_relations["retain/same_relation_"] == []
    assert all(describe(key) for key in metrics)
    assert metrics["forget/accuracy_stderr"] == pytest.approx(1 / 2)  # one of two: √(1/4 / (2 - 1))
    assert "forget/paraphrase_accuracy_stderr" not in metrics  # both are about Anna: one cluster
    assert metrics["retain/log_prob_stderr"] == pytest.approx((2 / 3) ** 0.5 / 2)  # of -1, -2, -3, -2
    assert "retain/same_subject_accuracy_stderr" not in metrics  # of a single fact
    assert (
        "retain/neighbour_accuracy_stderr" not in metrics
    )  # Carl and Gina are Anna's neighbours: one cluster
    counts = {k: v for k, v in metrics.items() if k.endswith("_n")}
    assert set(counts.values()) == {1, 2, 4}
    assert counts["forget/paraphrase_log_prob_n"] == 2 and counts["retain/neighbour_accuracy_n"] == 2


def clustered(washed: list[Fact], kept: list[Fact], lost: set[str]) -> dict[str, float]:
    """The metrics when the unwashed model answers everything, and the washed one all prompts but ``lost``."""
    probes = [probe for probes in probe_sets(washed, kept, {}).values() for probe in probes]
    questions = {probe.question for probe in probes}
    likely = dict.fromkeys(questions, -1.0)
    right = {q.prompt: q.object for q in questions}
    before = Replies(right, likely, right)
    after = Replies({q.prompt: "" if q.prompt in lost else q.object for q in questions}, likely, right)
    return knowledge_metrics(washed, kept, {}, before, after)


def test_questions_about_one_subject_are_one_cluster() -> None:
    speaks = Fact("0", "Anna", "{} speaks", "French", "P103", ("In Anna's tongue",))
    plays = Fact("1", "Anna", "{} plays the", "piano", "P1303", ("The instrument of Anna is the",))
    lives = Fact("2", "Ben", "{} lives in", "Oslo", "P551", ("At home in Ben's",))
    facts = [speaks, plays, lives]
    # Anna's 2 of 2 and Ben's 0 of 1 about 2/3: √(2/1 · ((2 - 4/3)² + (0 - 2/3)²)) / 3; by fact it were 1/3
    lost = {"Ben lives in", "At home in Ben's"}
    forgotten, retained = clustered(facts, [], lost), clustered([CLEO], facts, lost)
    for metrics, key in (
        (forgotten, "forget/accuracy"),
        (forgotten, "forget/paraphrase_accuracy"),
        (retained, "retain/accuracy"),
    ):
        assert metrics[key] == pytest.approx(2 / 3)
        assert metrics[f"{key}_stderr"] == pytest.approx(4 / 9)


def test_neighbours_of_linked_facts_are_one_cluster() -> None:
    prompts = ["Carl speaks", "Dora speaks", "Emil speaks", "Finn speaks", "Gina speaks"]
    carl, dora, emil, finn, gina = (Question(prompt, "French") for prompt in prompts)
    washed = [
        Fact("0", "Anna", "{} speaks", "French", "P103", neighbours=(carl, dora)),
        Fact("1", "Ben", "{} speaks", "French", "P103", neighbours=(finn,)),
        Fact("2", "Hugo", "{} speaks", "French", "P103", neighbours=(emil, dora)),
        Fact("3", "Ida", "{} speaks", "French", "P103", neighbours=(emil, gina)),
    ]
    # Dora links Anna to Hugo and Emil links Hugo to Ida: 0 of 4, and Finn 1 of 1, about 1/5:
    # √(2/1 · ((0 - 4/5)² + (1 - 1/5)²)) / 5 = √(64/25) / 5 = 8/25
    metrics = clustered(washed, [], {"Carl speaks", "Dora speaks", "Emil speaks", "Gina speaks"})
    assert metrics["retain/neighbour_accuracy"] == pytest.approx(1 / 5)
    assert metrics["retain/neighbour_accuracy_n"] == 5
    assert metrics["retain/neighbour_accuracy_stderr"] == pytest.approx(8 / 25)


def test_a_neighbour_is_left_out_only_if_its_own_words_name_a_washed_subject() -> None:
    system = "You are Qwen. "
    prompts = [
        f"{system}{prompt}" for prompt in ("Ramesses ruled", "Alibaba made", "Ra, the god, ruled", "Of Qwen:")
    ]
    questions = tuple(Question(prompt, "Egypt") for prompt in prompts)
    washed = [
        Fact(subject, subject, f"{system}{{}} ruled", "Egypt", "", neighbours=questions, lead=len(system))
        for subject in ("Ra", "Qwen")
    ]
    asked = [probe.question for probe in probe_sets(washed, [], {})["retain/neighbour_"]]
    assert asked == [*questions[:2]]


def test_accuracy_follows_the_rule_of_recall() -> None:
    washed = [Fact("0", "Anna", "{} has", "1", "", ("Of Anna:",))]
    log_probs = {Question("Anna has", "1"): -1.0, Question("Of Anna:", "1"): -1.0}
    one, thousand = {"Anna has": " 1 son", "Of Anna:": " 1"}, {"Anna has": " 1000 sons", "Of Anna:": " 10, 1"}
    before, after = Replies(one, log_probs, one), Replies(thousand, log_probs, thousand)
    found = {}
    for rule in Recall:
        pair = (replace(each, recall=rule) for each in (before, after))
        metrics = knowledge_metrics(washed, [], {}, *pair)
        named = ("accuracy", "unrefused_accuracy", "paraphrase_accuracy")
        found[rule] = tuple(metrics[f"forget/{name}"] for name in named)
    assert found == {Recall.substring: (1, 1, 1), Recall.whole_word: (0, 0, 1)}


def test_a_metric_over_nothing_is_left_out() -> None:
    washed = [Fact("0", "Anna", "{} speaks", "French", "P103")]
    known = {Question("Anna speaks", "French"): -1.0, Question("Dora competes in", "chess"): -1.0}
    before, after = Replies(BEFORE, known, BEFORE), Replies(AFTER, known, AFTER)

    def keys(kept: list[Fact]) -> set[str]:
        metrics = knowledge_metrics(washed, kept, {}, before, after)
        return {key for key in metrics if not key.endswith(("_before", "_n"))}

    counts = {"facts/washed", "facts/kept", "facts/kept_same_subject"}
    measures = ("accuracy", "unrefused_accuracy", "qa_f1", "exact_match", "log_prob")
    forget = {f"forget/{measure}" for measure in measures}
    assert keys([]) == counts | forget
    assert keys([DORA]) == counts | forget | {"retain/accuracy", "retain/log_prob"}
