#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the generated parts of the documentation.

    python tools/generate_docs.py            # write them; `make docs` is the same
    python tools/generate_docs.py --check    # name those that are stale, and end with 2

Whole pages lie in docs/reference. In the other pages, what stands between
`<!-- generated: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from d2defense.cli.ending import FAILED, run_to_end
from d2defense.files import write_text
from pages.attacks import attacks
from pages.configs import configs
from pages.findings import findings
from pages.leaderboard import leaderboard
from pages.model_zoo import model_zoo
from pages.options import options
from pages.parts import parts
from pages.result import result
from pages.settings import settings
from pages.specimens import specimens
from pages.study import recovery

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?P<open><!-- generated: (?P<name>[\w-]+) -->\n).*?(?=<!-- end -->)", re.S)


def generated(root: Path = ROOT) -> dict[Path, str]:
    """What the files with generated parts should hold.

    Raises:
        ValueError: a setting without a comment, or a marker of an unknown name.
    """
    reference, tables = root / "docs" / "reference", root / "docs" / "study" / "tables"
    pages = {
        reference / "options.md": options(),
        reference / "settings.md": settings(),
        reference / "parts.md": parts(),
        reference / "configs.md": configs(),
        reference / "result.md": result(),
        reference / "dataset_checks.md": findings(),
        reference / "model_zoo.md": model_zoo(reference),
        root / "docs" / "leaderboard.md": leaderboard(root / "docs" / "benchmark"),
    }
    blocks = {
        "recovery": recovery(tables),
        "specimens": specimens(),
        **attacks(root / "docs" / "attacks"),
    }

    def block(found: re.Match[str]) -> str:
        if found["name"] not in blocks:
            raise ValueError(f"no generated part {found['name']!r}; there are {', '.join(blocks)}")
        return f"{found['open']}{blocks[found['name']]}\n"

    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            pages[path] = BLOCK.sub(block, text)
    return pages


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Those files that hold something else, with what they should hold."""
    return {
        path: text
        for path, text in generated(root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    """Write, or with --check name, what is stale."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="holds README.md")
    args = parser.parse_args()
    found = stale(args.root)
    for path, text in found.items():
        print(f"{path.relative_to(args.root)}: {'stale' if args.check else 'written'}")
        if not args.check:
            write_text(path, text)
    return FAILED if args.check and found else 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
