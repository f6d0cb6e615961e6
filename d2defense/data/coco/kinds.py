# SPDX-License-Identifier: Apache-2.0
"""All that is looked for in a COCO-format file, and what becomes of it."""

from __future__ import annotations

from enum import Enum, StrEnum


class Outcome(StrEnum):
    """What becomes of a finding."""

    ERROR = "error"
    """The file is refused: whatever was done about it could change a figure."""
    CORRECTED = "put right"
    """There is only one thing it can mean, or Detectron2 and pycocotools agree on it."""
    NOTED = "noted"
    """Left as it is."""


class Kind(Enum):
    """One kind of finding; docs/dataset.md has them as a table.

    Attributes:
        what: is wrong, as the beginning of a line that goes on with a count and ids.
        outcome: what becomes of it.
        then: what was done, or what to do.
    """

    def __init__(self, what: str, outcome: Outcome, then: str) -> None:
        self.what = what
        self.outcome = outcome
        self.then = then

    RECORD = ("records that are no JSON objects", Outcome.ERROR, "")
    NUMBER = (
        "numbers written as text, or whole numbers as fractions",
        Outcome.CORRECTED,
        "read as numbers",
    )

    IMAGE_ID = ("images whose id is neither a whole number nor text", Outcome.ERROR, "")
    IMAGE_ID_TWICE = ("image ids that several images have", Outcome.ERROR, "number them anew")
    IMAGE_ID_CLASH = (
        "image ids that differ only in being number or text",
        Outcome.ERROR,
        "which image an annotation means is not clear",
    )
    IMAGE_ID_TEXT = (
        "image ids that are text beside others that are numbers",
        Outcome.CORRECTED,
        "replaced by numbers",
    )
    IMAGE_TWICE = ("images listed twice", Outcome.CORRECTED, "listed once")
    FILE_NAME = ("images without a file name", Outcome.ERROR, "")
    FILE_OUTSIDE = (
        "file names that lead out of the image folder",
        Outcome.ERROR,
        "name a folder that holds them all",
    )
    FILE_SPELLING = (
        "file names with backslashes, quoted as in a URL or in another case",
        Outcome.CORRECTED,
        "the file that is there is taken",
    )
    FILE_AMBIGUOUS = ("file names that fit several files but for their case", Outcome.ERROR, "")
    FILE_TWICE = ("images that have their file in common with another", Outcome.ERROR, "")
    IMAGE_SIZE = (
        "images without width or height",
        Outcome.CORRECTED,
        "read from the image files",
    )

    CATEGORY_ID = ("categories whose id is neither a whole number nor text", Outcome.ERROR, "")
    CATEGORY_ID_MIXED = (
        "category ids that are text beside others that are numbers",
        Outcome.ERROR,
        "their order says which class is which",
    )
    CATEGORY_ID_TWICE = ("category ids that several categories have", Outcome.ERROR, "")
    CATEGORY_TWICE = ("categories listed twice", Outcome.CORRECTED, "listed once")
    CATEGORY_NAME = ("categories without a name", Outcome.CORRECTED, "named by their ids")
    CATEGORY_NAME_TWICE = (
        "categories that have their name in common with another",
        Outcome.ERROR,
        "are they one class or two?",
    )
    CATEGORY_PARENT = (
        "categories without an object that others name as their supercategory",
        Outcome.NOTED,
        "each counts as a class of its own",
    )

    ANNOTATION_TWICE = (
        "annotations listed twice, the same in everything",
        Outcome.CORRECTED,
        "listed once",
    )
    ANNOTATION_ID = (
        "annotations whose id is missing or none that COCO's evaluation can take",
        Outcome.CORRECTED,
        "numbered anew",
    )
    ANNOTATION_ID_TWICE = (
        "annotation ids that several annotations have",
        Outcome.CORRECTED,
        "all but the first numbered anew",
    )
    OBJECT_TWICE = (
        "objects listed twice: image, class and box are the same",
        Outcome.NOTED,
        "left as they are",
    )
    UNKNOWN_IMAGE = ("annotations of images that are not listed", Outcome.ERROR, "")
    UNKNOWN_CATEGORY = ("annotations of categories that are not listed", Outcome.ERROR, "")
    CROWD = ("annotations without 'iscrowd'", Outcome.CORRECTED, "taken for single objects")
    CROWD_VALUE = ("annotations whose 'iscrowd' is neither 0 nor 1", Outcome.ERROR, "")
    IGNORE = (
        "annotations that are to be ignored ('ignore')",
        Outcome.ERROR,
        "Detectron2 has no such objects: remove them, or mark them as crowds",
    )
    AREA = ("annotations without an area", Outcome.CORRECTED, "that of the mask, else of the box")

    BOX = ("annotations without a box", Outcome.ERROR, "")
    BOX_OF_MASK = ("annotations with a mask, but no box", Outcome.CORRECTED, "the box around it")
    BOX_TYPE = ("boxes that are not four numbers", Outcome.ERROR, "")
    BOX_NOT_FINITE = ("boxes with NaN or infinity", Outcome.ERROR, "")
    BOX_NEGATIVE = ("boxes of negative width or height", Outcome.ERROR, "")
    BOX_RELATIVE = ("boxes all within 0..1", Outcome.ERROR, "are they shares of the image?")
    BOX_CORNERS = (
        "boxes that reach outside their image",
        Outcome.ERROR,
        "are they two corners each, instead of corner, width and height?",
    )
    BOX_OUTSIDE = ("boxes outside their image", Outcome.ERROR, "")
    BOX_EMPTY = (
        "boxes without width or height",
        Outcome.CORRECTED,
        "left out: no detector can find such an object",
    )
    BOX_CUT = (
        "boxes that reach outside their image by more than a pixel",
        Outcome.CORRECTED,
        "cut at its edge, as in training",
    )

    POLYGON_FLAT = (
        "masks of one polygon that is not in a list",
        Outcome.CORRECTED,
        "put in one",
    )
    POLYGON_SHORT = (
        "masks with polygons of fewer than three points",
        Outcome.CORRECTED,
        "these polygons are left out; boxes stay",
    )
    MASK = (
        "masks that are neither polygons nor run-length code of the image's size",
        Outcome.CORRECTED,
        "left out; boxes stay",
    )
    KEYPOINTS = (
        "keypoints that are not x, y and visibility each",
        Outcome.CORRECTED,
        "left out; boxes stay",
    )
    KEYPOINT_COUNT = ("keypoints without 'num_keypoints'", Outcome.CORRECTED, "counted")
