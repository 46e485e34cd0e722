"""`imageledger` of a later version, whose projections are others; its server refuses to read the whole log.

python newer.py serve|rebuild …
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import projections.schema

if __name__ == "__main__":
    # Before anybody has taken the number from there.
    projections.schema.PROJECTOR_VERSION += 1


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the projection is being built of the whole log")


if __name__ == "__main__":
    import projections.build
    from tools.cli import main

    if sys.argv[1] == "serve":
        projections.build.build_rows = refuse
    main(sys.argv[1:])
