"""Whether results/report.html and costs.json are of the results beside them.

DVC does not track these two, so `dvc checkout` and `dvc pull` leave them as they were. Both say of
which summary.json they are.
"""

from __future__ import annotations

import json
import re

from pipeline.store.identity import file_digest
from stages.workspace import Workspace

PAGE, COSTS = "report.html", "costs.json"
_NAMED = re.compile(r'<meta name="tspace-results" content="([0-9a-f]*)">')


def stale(workspace: Workspace) -> str | None:
    """What is wrong with the page or the costs, which `tspace report` mends; None where nothing is.

    Without a summary.json there are no results that a page could be of.
    """
    summary = workspace.results / "summary.json"
    if not summary.exists():
        return None
    expected, other = file_digest(summary), []
    for name, read in ((PAGE, _page), (COSTS, _costs)):
        path = workspace.results / name
        found = read(path.read_text(encoding="utf-8")) if path.exists() else None
        if found != expected:
            other.append(f"results/{name} is {'of other results' if path.exists() else 'missing'}")
    return " and ".join(other) or None


def _page(text: str) -> str:
    found = _NAMED.search(text)
    return found[1] if found else ""


def _costs(text: str) -> str:
    try:
        return json.loads(text).get("summary", "")
    except (ValueError, AttributeError):
        return ""
