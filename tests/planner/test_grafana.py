"""The Grafana dashboard: against the types that Grafana makes from its own schema, and promtool."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from bul.planner.alerts import RECORDED
from bul.planner.grafana import PANELS, render_dashboard
from bul.testing.prometheus import promtool

ROOT = Path(__file__).parents[2]


def round_trip(document: dict[str, Any]) -> dict[str, Any]:
    """What Grafana's types keep of it: a field that they do not know is gone."""
    kept: dict[str, Any] = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    return kept


def lost(given: object, kept: object, path: str = "") -> list[str]:
    """Paths of what is not in `kept` as it was given."""
    if isinstance(given, dict):
        assert isinstance(kept, dict), path
        return [
            found
            for name, value in given.items()
            for found in (
                [f"{path}.{name}"]
                if name not in kept
                else lost(value, kept[name], f"{path}.{name}")
            )
        ]
    if isinstance(given, list):
        assert isinstance(kept, list), path
        if len(given) != len(kept):
            return [path]
        pairs = zip(given, kept, strict=True)
        return [f for at, (a, b) in enumerate(pairs) for f in lost(a, b, f"{path}[{at}]")]
    return [] if given == kept else [path]


def test_grafanas_own_types_keep_every_field() -> None:
    document = json.loads(render_dashboard())
    assert lost(document, round_trip(document)) == []


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    document = json.loads(render_dashboard())
    document["panels"][1]["fieldConfig"]["defaults"]["unitt"] = "ms"
    assert lost(document, round_trip(document)) == [".panels[1].fieldConfig.defaults.unitt"]


def test_the_repository_has_the_rendered_one() -> None:
    path = ROOT / "deploy" / "grafana" / "bul.json"
    assert path.read_text(encoding="utf-8") == render_dashboard()


def expressions() -> list[str]:
    return [query for _, row in PANELS for panel in row for query in panel.queries.values()]


@pytest.mark.slow
async def test_every_expression_is_promql(tmp_path: Path) -> None:
    def file(queries: list[str]) -> Path:
        rules = [{"record": f"panel_{at}", "expr": query} for at, query in enumerate(queries)]
        path = tmp_path / "panels.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
        return path

    code, said = await promtool("check", "rules", file(expressions()))
    assert code == 0, said
    code, _ = await promtool("check", "rules", file(["sum(rate(bul_ready[5m])"]))
    assert code != 0


def test_every_metric_is_a_documented_one() -> None:
    documented = {
        name
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"`(bul_\w+)", page.read_text(encoding="utf-8"))
    }
    used = {name for query in expressions() for name in re.findall(r"bul_\w+", query)}
    bare = {re.sub(r"_bucket$", "", name) for name in used}
    assert bare - documented - set(RECORDED) == set()
