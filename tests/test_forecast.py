"""How long a run and a sweep will take: numbers computed by hand, and the passes that a model really makes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Loaded, TrainedLab
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.attacks.attacking import NAMES, Attacker, Attacks
from law.attacks.protocol import Cost
from law.attacks.relearning import Relearning
from law.decoders.greedy_decoding import greedy_answers, recalls
from law.evaluation.fluency import FluencySettings, generation_prompts, perplexity, sample_texts
from law.evaluation.known_facts import kinds_of
from law.evaluation.likelihood import object_log_probs
from law.evaluation.reasoning import score_reasoning
from law.evaluation.reasoning_tasks import ReasoningSettings
from law.evaluation.scores import EvaluationSettings, Scorer
from law.facts.counterfact import CounterFact, read_counterfact
from law.facts.fact import Fact
from law.methods.none import Unwashed
from law.runs import forecast as module
from law.runs.forecast import Counting, Speed, Work, forecast, measured
from law.runs.sweep import Remaining

# --- a run --------------------------------------------------------------------------------------


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """Each word is a token."""
    tokenizer = Tokenizer(models.WordLevel({"word": 0, "end": 1}, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="end")


def test_the_work_of_asking(tiny_model: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    """Three prompts of two tokens go in two batches, one of five in a third; each is read, and nine tokens more."""
    counting = Counting(Scorer(EvaluationSettings(batch_size=2)), tiny_model, words)
    assert counting.answers(["a b", "c d", "e f", "a b c d e"]) == Work(3 * 10, 3 * (2 + 9) + (5 + 9))
    assert counting.answers([]) == Work()


def test_a_sample_stands_for_all(
    tiny_model: PreTrainedModel, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth of 50 prompts is read: ten, of which five are long. The truth is the same."""
    monkeypatch.setattr(module, "SAMPLE", 10)
    counting = Counting(Scorer(EvaluationSettings(batch_size=8)), tiny_model, words)
    prompts = [f"a b{' c' * (i % 2)}" for i in range(50)]
    assert counting.answers(prompts) == Work(2 * 4 * 10, 25 * 11 + 25 * 12)  # ⌈25 / 8⌉ batches of each length


def test_speed(tiny_model: PreTrainedModel) -> None:
    """9 ms for a pass and 1 ms for a token: 10 ms for one, 73 ms for four rows of 16. First passes take 5 s."""
    taken = iter([5.0, *[0.005, 0.015] * 5, 5.0, *[0.073] * 8, 0.046, 0.100])
    now, begins = 0.0, True

    def clock() -> float:
        nonlocal now, begins
        if not begins:
            now += next(taken)
        begins = not begins
        return now

    speed = measured(tiny_model, 4, clock)
    assert (speed.per_pass, speed.per_token) == pytest.approx((0.009, 0.001))
    assert speed.seconds(Work(passes=10, tokens=1000, seconds=2)) == pytest.approx(0.09 + 1 + 2)
    assert next(taken, None) is None


def test_the_measurement_takes_fewer_rows_where_memory_runs_out(tiny_model: PreTrainedModel) -> None:
    tried = []

    def refuse(_: nn.Module, __: tuple[object, ...], asked: dict[str, torch.Tensor]) -> None:
        tried.append(len(asked["input_ids"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError

    tiny_model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert measured(tiny_model, 8).per_token >= 0
    assert [*dict.fromkeys(tried)] == [1, 8, 4, 2]


def test_the_measurement_draws_nothing(tiny_model: PreTrainedModel) -> None:
    before, weights = torch.get_rng_state(), [p.clone() for p in tiny_model.parameters()]
    measured(tiny_model, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(old, new) for old, new in zip(weights, tiny_model.parameters(), strict=True))


class Passes:
    """The work that a model really does."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._work = Work()
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(
        self, _: nn.Module, positional: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]
    ) -> None:
        self._work += Work(1, (positional[0] if positional else named["input_ids"]).numel())

    def taken(self) -> Work:
        work, self._work = self._work, Work()
        return work


@pytest.fixture
def scorer(trained_lab: TrainedLab, tmp_path: Path) -> Scorer:
    tasks = ReasoningSettings(["lab_larger"], limit=10, batch_size=40)
    texts = FluencySettings(prompts=4, tokens=7, text=str(trained_lab.text_path), documents=20)
    return Scorer(EvaluationSettings(8, tasks, texts, str(tmp_path)))


def test_the_work_is_what_a_model_does(knowing: Loaded, scorer: Scorer) -> None:
    model, tokenizer, facts = knowing
    counting, passes = Counting(scorer, model, tokenizer), Passes(model)
    settings, questions = scorer.settings, [fact.question for fact in facts]

    greedy_answers(model, tokenizer, [fact.prompt for fact in facts], 8)
    done, counted = passes.taken(), counting.answers([fact.prompt for fact in facts])
    assert 0 < done.passes <= counted.passes and done.tokens <= counted.tokens  # an answer may end early

    object_log_probs(model, tokenizer, questions, 8)
    assert passes.taken() == counting.log_probs(questions)

    sample_texts(model, tokenizer, [*generation_prompts(facts, 4)], settings.fluency)
    assert passes.taken() == counting.texts(facts)

    perplexity(model, tokenizer, settings.fluency)
    assert passes.taken() == counting.perplexity()

    score_reasoning(model, tokenizer, scorer.tasks, settings.reasoning)
    done, times = passes.taken(), iter((3.0, 5.0))
    counted = counting.reasoning(clock=lambda: next(times))
    assert counting.items == {"lab_larger": 10} and counted.seconds == 2.0
    assert counted.tokens == done.tokens and counted.passes <= done.passes  # the last batch is not full


def attacker(name: str, scorer: Scorer, facts: Sequence[Fact], pool: Sequence[Fact]) -> Attacker:
    """One attack on six facts of the 18; the others may be shown."""
    relearning = Relearning(parts=3, learning_rates=[1e-5], epochs=2, batch_size=2)
    kept = [fact for fact in pool if fact not in facts]
    return Attacker(Attacks([name], relearning=relearning), scorer.settings, facts, kept, pool)


def test_what_attacks_ask_of_a_model(knowing: Loaded, trained_lab: TrainedLab, scorer: Scorer) -> None:
    """Of six facts in four phrasings. Tuning shows twelve facts twice, each but in its own part, six kept ones, and six texts."""
    model, tokenizer, facts = knowing
    pool = read_counterfact(trained_lab.facts_path)
    found = {name: attacker(name, scorer, facts, pool).costs(model, tokenizer)[0] for name in NAMES}
    longer = sum(len(tokenizer(f" {fact.object}")["input_ids"]) > 1 for fact in facts)
    kept = [fact for fact in pool if fact not in facts][:6]
    texts = trained_lab.text_path.read_text(encoding="utf-8").splitlines()[:6]
    told = [
        *(2 * [f"{fact.prompt} {fact.object}" for fact in facts]),
        *(f"{f.prompt} {f.object}" for f in kept),
    ]
    tokens = sum(len(ids) for ids in tokenizer([*told, *texts])["input_ids"])
    assert found == {
        "refusal": Cost(read=6 * 12, answered=6),
        "phrasing": Cost(answered=6 * 4),
        "prefix": Cost(answered=6 * 6),
        "choice": Cost(read=6 * 4, answered=6),
        "leak": Cost(read=6, answered=16 * longer),
        "memory": Cost(read=6 * 7),
        "lens": Cost(read=6),
        "probe": Cost(read=6 + 12),
        "quantisation": Cost(answered=6 * 3),
        "relearning": Cost(answered=2 * 3 * 6, tuned=2 * tokens, steps=2 * 12),
    }


@pytest.mark.parametrize("name", ["refusal", "phrasing", "leak", "memory", "quantisation"])
def test_the_work_of_an_attack(name: str, knowing: Loaded, trained_lab: TrainedLab, scorer: Scorer) -> None:
    """The model reads no more tokens than are counted, since an answer may end early and a relation have few objects."""
    model, tokenizer, facts = knowing
    made = attacker(name, scorer, facts, read_counterfact(trained_lab.facts_path))
    counted = Counting(scorer, model, tokenizer).attacks(made.costs(model, tokenizer)[0], facts)
    passes = Passes(model)
    made.on_washed_facts(model, tokenizer, "hash")
    assert counted.tokens / 4 < passes.taken().tokens <= counted.tokens


def test_what_the_cache_holds_is_not_counted(
    knowing: Loaded, trained_lab: TrainedLab, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token takes a second, and a pass nothing: a time is there if there are tokens left to read."""
    model, tokenizer, _ = knowing
    monkeypatch.setattr(module, "measured", lambda *_: Speed(0, 1))
    split = CounterFact(str(trained_lab.facts_path), wash=4, keep=3).load()
    facts, rule = [*split.wash, *split.keep], scorer.settings.recall

    def told(*attacks: str) -> str:
        return forecast(
            Unwashed(),
            Attacks([*attacks]),
            split,
            scorer,
            scorer.on(model, tokenizer, True),
            model,
            tokenizer,
        )

    assert told().startswith(
        "Unwashed: 7 facts are asked; at most 4 are washed and 3 kept. Reasoning tasks: lab_larger (10 items). "
        "Asking takes about "
    )
    before = scorer.on(model, tokenizer, True)
    answers = before.answers([fact.prompt for fact in facts])
    washed, kept = (
        [f for f in found if recalls(answers[f.prompt], f.object)] for found in (split.wash, split.keep)
    )
    kinds = kinds_of([*washed, *kept], [*facts, *split.others], before.answers, rule)
    assert washed and f"at most {len(washed)} are washed and {len(kept)} kept" in told()
    assert "Asking takes no time, scoring before washing at most about " in told()
    before.scores(washed, kept, kinds)
    assert " The attacks take about " in told("refusal") and "attacks" not in told()
    assert "Asking takes no time, scoring before washing no time, and scoring after it no time." in told()


# --- a sweep ------------------------------------------------------------------------------------


class Sweep:
    """A sweep of four jobs as Hydra tells it to a callback, with a clock that a test moves."""

    def __init__(self, folder: Path, launcher: str = "basic", seeds: str = "0,1") -> None:
        self.now, self.number = 0.0, 0
        self.remaining = Remaining(clock=lambda: self.now)
        self.config = OmegaConf.create({"hydra": {"runtime": {"output_dir": "", "choices": {}}}})
        self.config.hydra.runtime.choices = {"hydra/launcher": launcher, "hydra/sweeper": "basic"}
        self.config.hydra.sweeper = {"params": {"method": "law,memit", "seed": "0,1,2"}}
        self.config.hydra.overrides = {"task": [f"seed={seeds}", "dataset=lab"]}
        self.folder = folder
        self.remaining.on_multirun_start(self.config)

    def job(self, seconds: float, ran: bool = True, failed: bool = False) -> None:
        folder = self.folder / str(self.number)
        folder.mkdir()
        config: DictConfig = self.config.copy()
        config.hydra.runtime.output_dir = str(folder)
        config.hydra.job = {"num": self.number}
        self.remaining.on_job_start(config)
        self.now, self.number = self.now + seconds, self.number + 1
        if ran:
            (folder / "manifest.json").write_text(json.dumps({"status": "failed" if failed else "finished"}))
        ended = JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
        self.remaining.on_job_end(config, ended)


@pytest.fixture(autouse=True)
def _everything_is_heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


def test_a_sweep_tells_how_long_the_other_runs_will_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second job takes 100 s and the fourth 200 s; the others were not run to their end."""
    sweep = Sweep(tmp_path, seeds="0,1,2")
    sweep.job(1, ran=False)
    sweep.job(100)
    sweep.job(7, failed=True)
    sweep.job(200)
    sweep.job(0, ran=False)
    sweep.job(50)
    assert caplog.messages == [
        "run 1 of 6 finished",
        "run 2 of 6 finished; about 7 min left",  # 4 · 100 s
        "run 3 of 6 failed; about 5 min left",
        "run 4 of 6 finished; about 5 min left",  # 2 · 150 s
        "run 5 of 6 finished; about 2 min left",  # 150 s
        "run 6 of 6 finished",
    ]


@pytest.mark.parametrize(("launcher", "seeds"), [("joblib", "0,1"), ("basic", "glob(*)")])
def test_a_sweep_that_cannot_know_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, launcher: str, seeds: str
) -> None:
    """Jobs run side by side, or are not known before the sweeper has listed them."""
    sweep = Sweep(tmp_path, launcher, seeds)
    sweep.job(100)
    assert caplog.messages == []


def test_only_the_first_process_of_a_sweep_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("law.runs.sweep.rank", lambda: 1)
    Sweep(tmp_path).job(100)
    assert caplog.messages == []
