"""`docs/monitoring.md` and the dashboard against the code: no metric, kind, word or stage is told otherwise than it is."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
import yaml  # type: ignore[import-untyped]

from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.patience import Patience
from iterum_sidecar.telemetry.health import Word
from iterum_sidecar.telemetry.metrics import Metrics
from iterum_sidecar.telemetry.probe import PROBES
from iterum_sidecar.telemetry.stage_times import FRAGMENT_STAGES
from iterum_sidecar.telemetry.subject import Subject
from iterum_sidecar.telemetry.tracing import OUTCOMES, UNFINISHED
from tests.unit.row import temporary_row
from tests.unit.row_with_faults import finished

if TYPE_CHECKING:
    from prometheus_client import Metric

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
#: What a query may name of a histogram beside its name.
OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")
NAME = re.compile(r"\b(?:iterum_sidecar|process)_[a-z_]+\b")


async def families() -> list[Metric]:
    async with temporary_row() as row:
        services = {name: Patience(f"the {name}", 0) for name in ("broker", "store")}
        sidecar = row.make_sidecar(finished())
        subject = Subject(row.settings(), sidecar, row.tally, services, lambda: 0)
        return list(Metrics(subject)._registry.collect())


def name_of(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


@cache
def rows() -> list[list[str]]:
    """The cells of every row of every table, without code marks."""
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]


def first_cells(header: str) -> list[str]:
    """The first cells of the table whose first header this is."""
    names = [row[0] for row in rows()]
    start = names.index(header) + 1
    headers = {
        "way",
        "word",
        "probe",
        "stage",
        "metric",
        "kind",
        "span",
        "iterum.outcome",
        "tracing",
    }
    end = next((at for at, name in enumerate(names) if at > start and name in headers), None)
    return names[start:end]


async def test_every_metric_has_one_row_that_says_what_it_says_of_itself() -> None:
    told = {row[0]: row[1:] for row in rows() if row[0].startswith("iterum_sidecar_")}
    found = {}
    for family in await families():
        if family.name.startswith("iterum_sidecar_"):
            labels = dict.fromkeys(
                label for sample in family.samples for label in sample.labels if label != "le"
            )
            found[name_of(family)] = [family.type, ", ".join(labels), family.documentation]
    found["iterum_sidecar_channel_items"][1] = "channel"  # there are none before the work begins
    assert told == found


async def test_no_metric_is_named_anywhere_that_does_not_exist() -> None:
    known = set()
    for family in await families():
        known |= {name_of(family), *(family.name + end for end in OF_A_HISTOGRAM)}
    assert set(NAME.findall(PAGE)) - known - {"iterum_sidecar_"} == set()
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    queries += [variable["definition"] for variable in DASHBOARD["templating"]["list"][1:]]
    named = set(NAME.findall(" ".join(queries)))
    assert len(named) > 15
    assert named - known == set()


def test_the_tables_have_every_word_probe_stage_and_kind() -> None:
    assert first_cells("word") == ["starting", "waiting", "ready", *get_args(Word)[3:]]
    assert sorted(first_cells("probe")) == sorted(PROBES)
    assert first_cells("stage") == list(FRAGMENT_STAGES)
    assert first_cells("kind") == [str(kind) for kind in DeadLetterKind]
    assert first_cells("iterum.outcome") == [*OUTCOMES.values(), UNFINISHED]


@pytest.mark.parametrize("begin", ["containers:", "apiVersion:", "groups:"])
def test_what_is_shown_as_yaml_is_yaml(begin: str) -> None:
    blocks = re.findall(rf"(?:^    {begin}.*\n(?:    .*\n|\n)*)", PAGE, re.MULTILINE)
    assert blocks
    for block in blocks:
        assert yaml.safe_load(re.sub("(?m)^    ", "", block))


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_header_of_the_kind_is_told_where_the_others_are() -> None:
    assert "| `x-iterum-kind` |" in OPERATING
