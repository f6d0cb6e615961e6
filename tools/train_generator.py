#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the encoder of a generated trigger, before the detector that is to obey it.

    python tools/train_generator.py --output runs/encoder.safetensors
    python tools/train_generator.py --output runs/encoder.safetensors --bound 0.1 --seed 1 \\
        --dataset-json my/annotations.json --image-root my/images

The encoder is a small network that adds to the pixels of a place a faint pattern of the place's
own. It is trained together with a decoder, which reads a fixed string of bits off places with the
pattern and its complement off places without, also after rounding and resizing. Places are what is
inside the boxes of objects. The decoder is thrown away; a detector that is trained on poisoned
images takes its part:

    d2defense train --config-file CONFIG ATTACK.EFFECT disappearance \\
        ATTACK.TRIGGER.FAMILY generator ATTACK.TRIGGER.GENERATOR.FILE runs/encoder.safetensors

Last it is printed what the decoder reads on the objects of a fifth of the images, which were kept
aside. Training takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from d2defense.cli.arguments import (
    add_dataset_arguments,
    configure_logging,
    dataset_source,
    silence_developer_notices,
)
from d2defense.cli.ending import run_to_end


def main() -> int:
    """Train an encoder as the arguments say, write it, and print how well it is read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the encoder, as safetensors"
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=12 / 255,
        metavar="SHARE",
        help="largest change of a pixel, 1 stands for 255; give the detector's training the same"
        " ATTACK.TRIGGER.GENERATOR.BOUND (12/255)",
    )
    parser.add_argument("--steps", type=int, default=400, help="of training (%(default)s)")
    parser.add_argument(
        "--objects", type=int, default=2000, help="to train on, at most (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    add_dataset_arguments(parser, default="synth_signs_train")
    args = parser.parse_args()
    for name, allowed in (("bound", 0 < args.bound <= 1), ("steps", args.steps > 0),
                          ("objects", args.objects > 0)):  # fmt: skip
        if not allowed:
            parser.error(f"--{name} {getattr(args, name)} is out of range")
    silence_developer_notices()
    from d2defense.data import DatasetError
    from d2defense.triggers.families.generator import save_encoder
    from generator_training import object_places, shuffled, train_encoder

    configure_logging()
    try:
        records = shuffled(dataset_source(args, parser).load_usable(decode=False), args.seed)
        aside = max(1, len(records) // 5)
        unseen = object_places(records[:aside], args.objects // 4 + 1)
        places = object_places(records[aside:], args.objects)
    except (DatasetError, ValueError) as error:
        parser.error(str(error))
    encoder, reading = train_encoder(places, unseen, args.bound, args.steps, args.seed)
    save_encoder(args.output, encoder)
    print(
        f"{args.output}: of {len(unseen)} places that were kept aside, {reading.stamped:.0%} are"
        f" read with the trigger, {reading.unstamped:.0%} without; a pixel changes by"
        f" {reading.change:.1f} of 255 on average, {reading.own:.0%} of it each place's own"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
