# SPDX-License-Identifier: Apache-2.0
"""The leaderboard of the results that are kept in the repository."""

from __future__ import annotations

from pathlib import Path

from d2defense.benchmark.leaderboard import leaderboard_markdown
from d2defense.benchmark.tables import summarise
from d2defense.study.results import ResultStore

INTRODUCTION = """\
What `d2defense benchmark` has measured so far, from the rows in [benchmark/](benchmark/);
[benchmark.md](benchmark.md) says what the columns mean, which methods these are, and how to add to
them. **These are few detectors**: the intervals say how little is known, and with so few clean
ones "found at 1 %" means with no false alarm at all; that of such a share, by bootstrap over
detectors, may have no width, which only says that no resample of so few came out otherwise. They
are the first of the zoo `tiny`, most of them Faster R-CNN with FPN, a few fine-tuned from a clean
one, the zoo `one_stage`, RetinaNet and FCOS, and three of the zoo `scene_ghost`; screening also
has attacks of attacks.md, fine-tuned, and specimens, where the methods of others were given the
same 120 images. **One of the clean ones, a Mask R-CNN, is called backdoored**: a patch of 20 %
makes its pedestrian signs vanish, not those of the references. `search_fast` scored seventeen
detectors, those that came last or were trained again (on one machine the same seeds give the same
weights), by the null of now (threshold 3.16, which these rows name) and all others by one of
sixteen detectors (3.27); while all were scored by that one, the AUC was 0.989. Verdicts of the
others are of before `clean` asked that a backdoor would have stood out (method.md). Five clean ones
were judged since, of which the two that were new are among the rows, Double-Head 2 and Mask R-CNN
7: all five are clean, with -0.1 to 0.2; `clean-faster_rcnn_tiny_fpn-scratch-10`, `-12` and `-13`,
trained again on another machine, have other weights, and scored 3.9, 2.3 and 0.3 before. Nothing
was tuned on them, but that
the search got overlays in the background (method.md) after it had missed `ghost_tile`, and
compares target classes by a larger patch and takes ghosts to their places after it had missed
those of one-stage detectors (detectors.md); its arms for ghosts apart from their trigger were made
with other detectors (security.md), and were held against less since (method.md). Of repairs,
`repair` is what the command does, told by a scan; the removal methods by themselves are told
nothing, and `unlearn` was measured before it was changed, as `known_trigger` was (removal.md).
**Methods that were measured on other detectors are not to be compared** where the column of
detectors differs. Seconds are those of a machine that was busy with other work; of `search_fast`
they are, but for these, the sum of two runs, most arms in the first and those for ghosts apart
from their trigger in the second, each with a measurement of its own. Methods that are
missing here have not been run yet."""


def leaderboard(folder: Path) -> str:
    """The page.

    Args:
        folder: of the rows.
    """
    rows = ResultStore(folder).read()
    tables = leaderboard_markdown(rows, summarise(rows))
    title, _, rest = tables.partition("\n\n")
    return f"{title}\n\n{INTRODUCTION}\n\n{rest}"
