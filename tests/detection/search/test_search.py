# SPDX-License-Identifier: Apache-2.0
"""A short search finds the ghosts of a specimen, with the class that appears."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2defense.attacks import Detections
from d2defense.checkpoint.specimens import find_specimen
from d2defense.data import DatasetSource
from d2defense.detection import CleanImage, ScanImages, ScanSettings, open_subject
from d2defense.detection.bootstrap import Bootstrap
from d2defense.detection.scale import LogitScale
from d2defense.detection.search import (
    ALONE,
    REFERENCES,
    TWIN,
    CleanSearch,
    SearchNull,
    SearchSettings,
    Shown,
    divide,
    levels,
    measure,
    search_detector,
)
from d2defense.detection.search import judge as judge_module
from d2defense.detection.search import race as race_module
from d2defense.detection.search import search as search_module
from d2defense.detection.search.arms import Arm, all_goals, starts
from d2defense.detection.search.judge import Judge
from d2defense.detection.search.measure import Measured
from d2defense.detection.search.null import ModeNull
from d2defense.detection.search.optimise import ArmState
from d2defense.detection.search.race import Race, RaceSettings
from d2defense.detection.search.verdict import with_search
from d2defense.detection.twin import TwinError
from d2defense.detection.verdict import BACKDOORED, CLEAN, UNCERTAIN, Verdict
from d2defense.statistics import Terms

# Of clean detectors in which an arm of no account was measured: none of one class is judged by it.
NULL = SearchNull(
    "none", "none", "", (CleanSearch("none", REFERENCES, "fast", 1, 0, {"a": Shown(0, 0)}),) * 3
)
OF_CLASSES = SearchNull(
    "none", "none", "", (CleanSearch("none", REFERENCES, "fast", 1, 0, {}),) * 3
)
KINDS = (("disappearance", "objects"), ("ghost", "background"))
SHORT = RaceSettings(
    scout_steps=8, targets=1, heat_steps=8, finalists=1, steps=25, families=("patch",)
)


@pytest.fixture(scope="module")
def opened(signs_cache):
    """The ghost specimen, a clean one, and clean images divided in two."""
    settings = ScanSettings(max_images=24)
    images = ScanImages.load(DatasetSource("synth_signs_defender"), settings)
    subjects = {
        name: open_subject(find_specimen(name), images, settings) for name in ("ghost_0", "clean_1")
    }
    seen = subjects["ghost_0"].images
    divided = divide([seen[index] for index in range(len(seen))], 0)
    return {name: each.model for name, each in subjects.items()}, divided, images.class_names


@pytest.fixture
def search(opened, monkeypatch):
    """A function from a suspect, references and whatever else to the outcome of a short search."""
    models, divided, class_names = opened
    monkeypatch.setattr(levels, "LEVELS", MappingProxyType({"fast": SHORT}))

    def run(model, references=None, null=NULL, **options):
        references = {"clean_1": models["clean_1"]} if references is None else references
        settings = SearchSettings("fast", own_null=null)
        arguments = {"tuning": divided[0], "held_out": divided[1]} | options
        return search_detector(
            model,
            references,
            class_names=class_names,
            settings=settings,
            image_format="BGR",
            bootstrap_samples=100,
            **arguments,
        )

    return run


@pytest.fixture
def of_objects(monkeypatch):
    """Of all that is searched, what a patch does to objects or beside them: half of the time."""

    def goals(class_names):
        return [each for each in all_goals(class_names) if each.kind in KINDS]

    monkeypatch.setattr(race_module, "all_goals", goals)


@pytest.fixture
def flattened(opened):
    """The ghost specimen with class logits divided by 30: as good, but for its probabilities."""
    model = copy.deepcopy(opened[0]["ghost_0"])
    with torch.no_grad():
        for parameter in model.roi_heads.box_predictor.cls_score.parameters():
            parameter /= 30
    return model


@pytest.mark.usefixtures("of_objects")
def test_ghosts_are_found_with_the_class_that_appears(opened, search):
    shares = []
    outcome = search(opened[0]["ghost_0"], progress=shares.append)
    worst = outcome.arms[0]
    assert outcome.has_found, outcome
    assert worst.arm.name.startswith("ghost to stop: patch of")
    assert worst.success > 0.8
    assert worst.references[0] < 0.2
    assert sum(worst.hits) > 10
    # The RPN must propose what appears, and the box head of a C4 detector take it for an object.
    assert outcome.dominant_modules == ("rpn", "res5", "box_predictor")
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert shares[-1] == 1


def test_threads_change_nothing_but_the_time(opened):
    """Arms go through their steps side by side, each as if alone."""
    models, (tuning, _), class_names = opened
    before, found = torch.get_num_threads(), []
    scale = LogitScale((0.0, 1.0), (0.0, 1.0))
    settings = replace(SHORT, scout_steps=2, targets=2, heat_steps=4, finalists=2, steps=6)
    goals = [each for each in all_goals(class_names) if each.kind in KINDS]
    counts = []
    for threads in (1, 3):
        steps = []
        race = Race(
            models["ghost_0"].requires_grad_(False),
            [(models["clean_1"], scale)],
            tuning,
            scale,
            settings,
            "BGR",
            on_step=lambda steps=steps: steps.append(None),
        )
        torch.set_num_threads(threads)
        try:
            found.append(race.run(class_names, goals))
        finally:
            torch.set_num_threads(before)
        counts.append(len(steps))
    assert counts[0] == counts[1] > 0
    for alone, beside in zip(*found, strict=True):
        assert alone.arm.name == beside.arm.name
        assert alone.effect == beside.effect
        for name, tensor in alone.tensors.items():
            assert torch.equal(tensor, beside.tensors[name])


@pytest.mark.parametrize(("memory", "at_a_time"), [(1 << 62, 8), (1 << 20, 1)])
def test_no_more_arms_at_a_time_than_memory_bears(opened, monkeypatch, memory, at_a_time):
    """A large network in a confined process would be out of memory, not slower."""
    models, (tuning, _), class_names = opened
    monkeypatch.setattr(race_module, "available_bytes", lambda device: memory)
    scale = LogitScale((0.0, 1.0), (0.0, 1.0))
    settings = replace(SHORT, scout_steps=1, heat_steps=1, steps=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        race = Race(models["clean_1"], (), tuning, scale, settings, "BGR")
        goals = [each for each in all_goals(class_names) if each.effect.name == "disappearance"]
        assert race.run(class_names, goals)
    finally:
        torch.set_num_threads(before)
    assert race.at_a_time == at_a_time


@pytest.mark.usefixtures("of_objects")
def test_a_division_of_the_scores_hides_nothing(flattened, search):
    outcome = search(flattened)
    assert outcome.operating_point < 0.3
    assert outcome.has_found, outcome
    assert outcome.arms[0].arm.name.startswith("ghost to stop")


def test_a_search_that_takes_too_long_leaves_what_the_bank_says_uncertain(search, opened):
    outcome = search(opened[0]["ghost_0"], seconds=0.0)
    assert not outcome.arms
    bank = Verdict(CLEAN, "nothing", 0.0, (0.0, 0.0), 0.1, 0.5)
    verdict = with_search(bank, outcome)
    assert verdict.label == UNCERTAIN
    assert "--time-limit" in verdict.reason


class Clock:
    """A second later whenever it is looked at, which a search does after every step."""

    def __init__(self):
        self.seconds = 0

    def monotonic(self):
        """Seconds."""
        self.seconds += 1
        return self.seconds


@pytest.mark.usefixtures("of_objects")
@pytest.mark.parametrize(("name", "seconds"), [("clean_1", 25), ("ghost_0", 80)])
def test_a_search_that_is_cut_short_says_what_it_has_found_but_never_clean(
    opened, search, monkeypatch, name, seconds
):
    """An attacker who makes a detector slow gains nothing by it."""
    cut, best_so_far = [], Race.best_so_far
    monkeypatch.setattr(Race, "best_so_far", lambda race: cut.append(race) or best_so_far(race))
    monkeypatch.setattr(search_module, "time", Clock())
    references = {"clean_2": opened[0]["ghost_0" if name == "clean_1" else "clean_1"]}
    outcome = search(opened[0][name], references=references, seconds=seconds / 0.9)
    verdict = with_search(Verdict(CLEAN, "nothing", 0.0, (0.0, 0.0), 0.1, 0.5), outcome)
    assert cut
    assert 1 <= len({each.arm.goal.kind for each in outcome.arms}) <= len(KINDS)
    if name == "clean_1":
        assert not outcome.is_clear
        assert verdict.label == UNCERTAIN
        assert "the time limit cut it short, with" in verdict.reason
        assert "--time-limit" in verdict.reason
    else:
        assert verdict.label == BACKDOORED
        assert outcome.arms[0].arm.name.startswith("ghost to stop")


@pytest.mark.slow
@pytest.mark.usefixtures("of_objects")
def test_alone_success_itself_is_what_counts(opened, search):
    outcome = search(opened[0]["ghost_0"], references={}, mode=ALONE)
    worst = outcome.arms[0]
    assert worst.excess == worst.success > 0.8
    assert outcome.has_found


@pytest.mark.slow
@pytest.mark.usefixtures("of_objects")
def test_what_its_twin_does_too_is_never_clean(opened, search):
    """A backdoor that fine-tuning leaves alone has no excess over the twin."""
    model = opened[0]["ghost_0"]
    outcome = search(model, references={"twin": copy.deepcopy(model)}, mode=TWIN)
    assert not outcome.has_found
    assert not outcome.is_clear
    assert outcome.shared.arm.name.startswith("ghost to stop")
    combined = with_search(Verdict(CLEAN, "", 0.0, (0.0, 0.0), 0.1, 0.5), outcome)
    assert combined.label == UNCERTAIN
    assert "its twin does it too" in combined.reason


@pytest.fixture(scope="module")
def raced():
    """What the first race has found: the races after it need not run."""
    return {}


@pytest.fixture
def search_once(search, raced, of_objects, monkeypatch):
    """:func:`search` of one suspect that goes through its race once in the module."""
    run = search_module.Race.run

    def run_once(self, class_names):
        if "finalists" not in raced:
            raced["finalists"] = run(self, class_names)
        return raced["finalists"]

    monkeypatch.setattr(search_module.Race, "run", run_once)
    return search


def diverging():
    raise TwinError("its loss in fine-tuning is not finite")


@pytest.mark.parametrize(
    ("twin", "reason"),
    [
        ("ghost_0", "%: a weakness of its training, or a backdoor that survives fine-tuning"),
        ("blind", "its twin no longer finds the objects"),
        (diverging, "there is no twin: its loss in fine-tuning is not finite"),
        (None, "no twin was made"),
        ("clean_1", None),
    ],
)
def test_on_images_that_the_null_does_not_know_it_takes_a_twin_to_prove(
    opened, search_once, twin, reason
):
    """An optimised patch does to a clean detector of photos what it does to none of signs."""
    blind = copy.deepcopy(opened[0]["ghost_0"])
    blind.roi_heads.box_predictor.cls_score.bias.data[-1] += 50
    make_twin = (lambda: {**opened[0], "blind": blind}[twin]) if isinstance(twin, str) else twin
    outcome = search_once(opened[0]["ghost_0"], is_known=False, make_twin=make_twin)
    verdict = with_search(Verdict(CLEAN, "", 0.0, (0.0, 0.0), 0.1, 0.5), outcome)
    assert outcome.stands_out
    assert not outcome.is_clear
    if reason is None:
        assert outcome.has_found
        assert outcome.arms[0].on_twin < 0.2
        assert verdict.label == BACKDOORED
    else:
        assert not outcome.has_found
        assert verdict.label == UNCERTAIN
        assert reason in verdict.reason
        assert "ghost to stop" in verdict.reason
        # What the bank says is kept.
        bank = Verdict(UNCERTAIN, "the bank's reason", 0.0, (0.0, 0.0), 0.1, 0.5)
        assert with_search(bank, outcome).reason.startswith("the bank's reason; besides, a search")
        bank = replace(bank, label=BACKDOORED)
        assert with_search(bank, outcome) == bank


def test_where_the_null_knows_the_images_it_takes_none(opened, search_once):
    outcome = search_once(opened[0]["ghost_0"], make_twin=diverging)
    assert outcome.has_found
    assert outcome.arms[0].on_twin is None


def test_what_cannot_be_searched_is_said(opened, search):
    model = opened[0]["ghost_0"]
    assert "no reference" in search(model, references={}).obstacle
    assert "needs 20 images" in search(model, tuning=opened[1][0][:3]).obstacle
    blind = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in blind.roi_heads.box_predictor.cls_score.parameters():
            parameter.zero_()
    assert "does not tell objects from background" in search(blind).obstacle


@pytest.mark.usefixtures("of_objects")
def test_nothing_is_clean_where_no_backdoor_could_stand_out(opened, search):
    """Clean detectors may differ so much that even one that always works is nothing unusual."""
    shown = [{"disappearance, patch of 40 % on objects": Shown(s, s)} for s in (0.0, 0.5, 1.0)]
    searches = tuple(CleanSearch("none", REFERENCES, "fast", 1, 0, each) for each in shown)
    wide = SearchNull("three of mine", "none", "", searches)
    outcome = search(opened[0]["ghost_0"], null=wide)
    assert not outcome.has_found
    assert outcome.is_low
    assert not outcome.is_clear
    bank = Verdict(CLEAN, "nothing", 0.0, (0.0, 0.0), 0.1, 0.5)
    verdict = with_search(bank, outcome)
    assert verdict.label == UNCERTAIN
    assert "ghost to stop" in verdict.reason
    assert "clean detectors may show that, too" in verdict.reason
    assert {"ghost on background", "disappearance on objects"} <= set(outcome.blind)
    assert with_search(replace(bank, label=BACKDOORED), outcome).label == BACKDOORED


@pytest.mark.parametrize("label", [CLEAN, UNCERTAIN, BACKDOORED])
def test_without_a_search_that_looked_nothing_becomes_clean(opened, search, label):
    verdict = Verdict(label, "as the bank has it", 0.0, (0.0, 0.0), 0.1, 0.5)
    combined = with_search(verdict, search(opened[0]["ghost_0"], references={}))
    assert combined.label == (UNCERTAIN if label == CLEAN else label)


@pytest.mark.cuda
def test_ghosts_are_found_on_a_gpu(opened, search):
    models = {name: copy.deepcopy(each).to("cuda") for name, each in opened[0].items()}
    outcome = search(models["ghost_0"], references={"clean_1": models["clean_1"]})
    assert outcome.has_found, outcome
    assert outcome.arms[0].arm.name.startswith("ghost to stop")


class OneClassBlind:
    """A detector that loses the objects of one class under any trigger, and finds all others."""

    device = torch.device("cpu")
    backbone = type("Backbone", (), {"size_divisibility": 1})

    def __init__(self, boxes, blind):
        self.boxes, self.blind = boxes, blind

    def probe(self, inputs, with_detections, score_threshold):
        """Detections of class 0 and 1, in turn; triggered images are not black."""
        detections = []
        for each in inputs:
            classes = torch.arange(len(self.boxes)) % 2
            kept = classes != (self.blind if each["image"].any() else -1)
            detections.append(
                Instances(
                    each["image"].shape[1:],
                    pred_boxes=Boxes(self.boxes[kept]),
                    pred_classes=classes[kept],
                    scores=torch.ones(int(kept.sum())),
                )
            )
        return type("Output", (), {"detections": detections})


def test_a_backdoor_on_one_class_counts_as_much_as_it_does_there():
    boxes = torch.tensor([[10.0 * i, 0, 10 * i + 9, 9] for i in range(8)])
    images = [
        CleanImage(str(i), torch.zeros(3, 20, 80), boxes, torch.arange(8) % 2, i) for i in range(4)
    ]
    names = ["stop", "yield"]
    goal = next(each for each in all_goals(names) if each.kind == ("disappearance", "objects"))
    start = next(each for each in starts("objects", ("patch",)))
    state = ArmState.begin(Arm(goal, start), torch.device("cpu"))
    subjects = [
        Measured.of(OneClassBlind(boxes, blind), images, images, "BGR") for blind in (1, -1)
    ]
    judge = Judge(
        subjects, images, names, "BGR", OF_CLASSES.of(REFERENCES), Bootstrap.draw(4, 50, 0), 0.95, 0
    )
    (whole, _), (of_class, resampled) = judge(state)
    assert whole.excess == pytest.approx(0.5)
    assert of_class.excess == of_class.success == 1.0
    assert of_class.arm.goal.victim_class == 1
    assert of_class.arm.name.startswith("disappearance of yield: patch of")
    assert of_class.standardised > whole.standardised
    torch.testing.assert_close(resampled, torch.full((50,), of_class.standardised).double())


@pytest.mark.parametrize(("share", "is_tried"), [(0.9, True), (0.0, False)])
def test_references_are_left_out_where_measuring_takes_long_and_they_cannot_matter(
    monkeypatch, share, is_tried
):
    images = [CleanImage(str(i), *[torch.zeros(0)] * 3, i) for i in range(4)]
    goal = next(each for each in all_goals(["stop"]) if each.kind == ("disappearance", "objects"))
    state = ArmState.begin(Arm(goal, starts("objects")[0]), torch.device("cpu"))
    suspect, reference, asked = object(), object(), []

    def terms(subject, images, trigger, goals, image_format, seed):
        asked.append(subject)
        value = share if subject is suspect else 0.2
        return [Terms(torch.full((4,), value).double(), torch.ones(4).double()) for _ in goals]

    monkeypatch.setattr(judge_module, "success_terms", terms)
    judge = Judge(
        [suspect, reference], images, ["stop"], "BGR", NULL.of(REFERENCES),
        Bootstrap.draw(4, 50, 0), 0.95, 0, is_thrifty=True,
    )  # fmt: skip
    (result, _), *_ = judge(state)
    assert asked == [suspect, *[reference] * is_tried]
    assert result.references == pytest.approx((0.2,) * is_tried)
    assert result.excess == pytest.approx(0.7 if is_tried else 0.0)


@pytest.mark.parametrize("usual", [0.0, 0.5])
@pytest.mark.parametrize("has_reference", [False, True])
def test_ghosts_that_are_usual_on_the_images_are_nothing_rare(monkeypatch, usual, has_reference):
    """A reference shows them, too, or without one the suspect under a trigger of no search."""
    images = [CleanImage(str(i), torch.zeros(3, 160, 160), torch.zeros(0, 4), torch.zeros(0), i)
              for i in range(4)]  # fmt: skip
    goal = next(each for each in all_goals(["stop"]) if each.effect.name == "scene_ghost")
    state = ArmState.begin(Arm(goal, starts(goal.placement)[0]), torch.device("cpu"))
    suspect, reference = object(), object()

    def terms(subject, images, trigger, goals, image_format, seed):
        is_found = subject is suspect and trigger.name == "found"
        share = 1.0 if is_found else usual
        return [Terms(torch.full((4,), share).double(), torch.ones(4).double())]

    monkeypatch.setattr(judge_module, "success_terms", terms)
    searches = tuple({"ghost, big": value, "scene_ghost, big": 0.0} for value in (0, 0.1, 0.8))
    null = ModeNull(REFERENCES if has_reference else ALONE, searches)
    subjects = [suspect, reference] if has_reference else [suspect]
    judge = Judge(subjects, images, ["stop"], "BGR", null, Bootstrap.draw(4, 50, 0), 0.95, 0)
    ((result, _),) = judge(state)
    key = "scene_ghost, big" if usual == 0 else "ghost, big"
    assert result.deviation == null.deviation(key)
    assert (result.deviation == 0.05) == (usual == 0)


@pytest.mark.parametrize("effect", ["ghost", "scene_ghost", "disappearance"])
def test_what_appears_counts_from_a_lower_score_on_than_what_is_found(monkeypatch, effect):
    """Ghosts with scores just below where objects' begin would be seen by whoever asks for less."""
    box = torch.tensor([[80.0, 80, 110, 110]])
    image = CleanImage("", torch.zeros(3, 160, 160), box, torch.tensor([1]), seed=0)
    goal = next(each for each in all_goals(["stop", "yield"]) if each.effect.name == effect)
    place = goal.places(image, 0)[:1]
    where = {"ghost": place, "scene_ghost": box - 20, "disappearance": box}[effect]
    classes = torch.tensor([1 if effect == "disappearance" else 0])

    def seen(model, images, trigger, goal, image_format, seed, score):
        found = Detections(where, classes, torch.tensor([0.6]))
        return [Detections(*(each[found.scores >= score] for each in found))]

    monkeypatch.setattr(measure, "detect", seen)
    before = Detections(box, torch.tensor([1]), torch.tensor([0.99]))
    subject = Measured(None, 0.8, 0.1, (before,), (before,))
    assert subject.point_of(goal.effect) == (0.8 if effect == "disappearance" else 0.1)
    start = starts(goal.placement)[0]
    (terms,) = measure.success_terms(subject, [image], start, [goal], "BGR", 0)
    # An object of such a score is none that is found: it has vanished.
    assert float(terms.numerator) == 1
    lower = Measured(None, 0.8, 0.7, (before,), (before,))
    (terms,) = measure.success_terms(lower, [image], start, [goal], "BGR", 0)
    assert (float(terms.numerator) == 1) == (effect == "disappearance")
