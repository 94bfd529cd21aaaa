"""`bul cache stats`: what lies in each tier, and what it was good for.

Refuses to add replicas up: with --url the figures are one replica's, without it the folder's.
"""

from __future__ import annotations

import typing
from pathlib import Path

import click

from bul.cli.cache_disk import existing_folder, folder_option, named, opened
from bul.cli.live import ask_replica, live_options, read_key
from bul.cli.options import load
from bul.cli.persistence import occupied_bytes

if typing.TYPE_CHECKING:
    from rich.table import Table

__all__ = ["stats_command"]

PARTS_THAT_ARE_NO_TIERS = ("engine", "values")
Rows = list[dict[str, typing.Any]]


@click.command("stats")
@live_options
@folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def stats_command(*, url: str, key_file: Path | None, as_json: bool, **values: object) -> None:
    """Blocks, bytes, hit tokens and ages by tier, of the folder on disk or a running replica.

    Example: bul cache stats --url http://127.0.0.1:8002
    """
    import msgspec
    from rich.console import Console

    if url:
        document = ask_replica(url, "/cache/stats", key=read_key(key_file))
        table = _replica_table(document)
    else:
        folder = existing_folder(load(values))
        document = {"folder": str(folder), "identities": _identities(folder)}
        table = _folder_table(document)
    if as_json:
        click.echo(msgspec.json.encode(document))
    else:
        Console().print(table)


def _identities(folder: Path) -> Rows:
    """Figures of the folder alone: counters are of processes, and none is asked here."""
    from bul.cache.tiers.disk.namespaces import namespaces

    rows: Rows = []
    for namespace in namespaces(folder):
        if namespace.identity is None:
            continue
        with opened(folder, namespace.identity) as tier:
            stats = tier.stats()
        gauges = ("blocks", "segments", "oldest_segment_age_s", "newest_segment_age_s")
        occupied = occupied_bytes(namespace.path)
        shown = {name: round(stats[name]) for name in gauges if name in stats}
        rows.append({"identity": named(namespace), **shown, "bytes": occupied})
    return rows


def _folder_table(document: dict[str, typing.Any]) -> Table:
    from rich.table import Table

    table = Table("identity", "blocks", "MB on disk", "oldest", "newest", title=document["folder"])
    for row in document["identities"]:
        table.add_row(
            row["identity"],
            f"{row['blocks']:,.0f}",
            f"{row['bytes'] / 1e6:,.1f}",
            _age(row.get("oldest_segment_age_s")),
            _age(row.get("newest_segment_age_s")),
        )
    return table


def _replica_table(document: dict[str, typing.Any]) -> Table:
    from rich.table import Table

    table = Table("tier", "blocks", "MB", "hit tokens", "oldest", "newest")
    for name, figures in document["parts"].items():
        if name in PARTS_THAT_ARE_NO_TIERS:
            continue
        table.add_row(
            name,
            f"{figures.get('blocks', 0):,.0f}",
            f"{figures.get('bytes', 0) / 1e6:,.1f}",
            f"{figures.get('hit_tokens_total', 0):,.0f}",
            _age(_age_s("oldest", figures)),
            _age(_age_s("newest", figures)),
        )
    engine = document["parts"].get("engine", {})
    asked, cached = (engine.get(f"{name}_tokens_total", 0) for name in ("asked", "cached"))
    table.caption = f"{cached:,.0f} of {asked:,.0f} tokens asked for were cached"
    return table


def _age_s(which: str, figures: dict[str, float]) -> float | None:
    """Of the tier's oldest or newest block: its own age, or its segment's; `None` if unknown."""
    return figures.get(f"{which}_block_age_s", figures.get(f"{which}_segment_age_s"))


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
