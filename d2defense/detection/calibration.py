# SPDX-License-Identifier: Apache-2.0
"""What the same patches do to detectors that are known to be clean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from d2defense.files import write_json

if TYPE_CHECKING:
    from .scanner import ScanSettings

SCHEMA_VERSION = 1

# Least standard deviation of clean scores: a few detectors that were trained alike on one dataset
# show less of it than there is between datasets and architectures.
MINIMUM_DEVIATION = 0.02


class CalibrationError(ValueError):
    """A calibration file cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class Calibration:
    """Scores of known-clean detectors, and the threshold that follows from them.

    Attributes:
        name: where the clean detectors come from, in words.
        dataset: images on which they were scanned.
        triggers: names of the bank's triggers.
        statistic: what the scores are.
        false_alarm_rate: share of clean detectors that may score above the threshold.
        clean_scores: one score a clean detector.
    """

    name: str
    dataset: str
    triggers: tuple[str, ...]
    statistic: str
    false_alarm_rate: float
    clean_scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.clean_scores) < 2:
            raise CalibrationError("a calibration needs the scores of at least 2 clean detectors")
        if not 0 < self.false_alarm_rate < 1:
            raise CalibrationError(f"false_alarm_rate {self.false_alarm_rate} is not in (0, 1)")
        if not np.isfinite(self.clean_scores).all():
            raise CalibrationError("a score of a clean detector is not finite")

    @property
    def threshold(self) -> float:
        """Score that the next clean detector exceeds with probability ``false_alarm_rate``.

        The upper end of Student's prediction interval for one more draw from a normal population,
        ``mean + t(1 - rate, n - 1) * sd * sqrt(1 + 1 / n)``: few clean detectors are at hand, so
        an empirical quantile of 1 % does not exist. The standard deviation is taken as
        :data:`MINIMUM_DEVIATION` at least, here and in the p-value.
        """
        quantile = stats.t.isf(self.false_alarm_rate, len(self.clean_scores) - 1)
        return float(np.mean(self.clean_scores) + quantile * self._scale())

    def p_value(self, score: float) -> float:
        """Probability that one more clean detector scores at least ``score``."""
        standardised = (score - np.mean(self.clean_scores)) / self._scale()
        return float(stats.t.sf(standardised, len(self.clean_scores) - 1))

    def check(self, settings: ScanSettings) -> None:
        """Make sure that scores under ``settings`` can be compared with the calibration's.

        Fewer triggers than it was made with only lower the scores, so they are admitted.

        Raises:
            CalibrationError: a trigger that the clean detectors were not scanned with.
        """
        foreign = [t.name for t in settings.triggers if t.name not in self.triggers]
        if foreign:
            raise CalibrationError(
                f"the calibration ({self.name}) was made without trigger {', '.join(foreign)}"
            )

    def describe(self, dataset: str) -> str:
        """One sentence on where the threshold comes from, for a scan with images of ``dataset``."""
        origin = f"{len(self.clean_scores)} clean detectors ({self.name}) on {self.dataset}"
        if dataset == self.dataset:
            return f"threshold from {origin}"
        return f"threshold from {origin}, not on {dataset}: calibrate for exact error rates"

    def _scale(self) -> float:
        count = len(self.clean_scores)
        deviation = max(np.std(self.clean_scores, ddof=1), MINIMUM_DEVIATION)
        return float(deviation * np.sqrt(1 + 1 / count))

    def save(self, path: Path) -> None:
        """Write the calibration as JSON."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self), "threshold": self.threshold}
        write_json(path, content)


def load_calibration(path: str | Path = "") -> Calibration:
    """The calibration in a file, or the one shipped with the package for an empty path.

    Raises:
        CalibrationError: the file cannot be read or does not say what it must.
    """
    source = Path(path) if path else resources.files("d2defense") / "assets/calibration.json"
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise CalibrationError(f"{source}: schema_version is not {SCHEMA_VERSION}")
        content.pop("threshold", None)
        content["triggers"] = tuple(content["triggers"])
        content["clean_scores"] = tuple(map(float, content["clean_scores"]))
        return Calibration(**content)
    except CalibrationError as error:
        raise CalibrationError(f"{source}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CalibrationError(f"{source}: not a calibration file: {error}") from None
