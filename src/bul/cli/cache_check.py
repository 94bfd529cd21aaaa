"""`bul cache check`: the disk tier's index against its files, both ways; every payload is read.

Refuses to mend without --fix, and to touch files that are not ours even then.
"""

from __future__ import annotations

import typing
from pathlib import Path

import click

from bul.cli.cache_disk import existing_folder, folder_option, named, opened
from bul.cli.options import load

if typing.TYPE_CHECKING:
    from bul.cache.tiers.disk.namespaces import Namespace

__all__ = ["check_command"]


@click.command("check")
@folder_option
@click.option("--fix", is_flag=True, help="Remove what is damaged, index what is sound.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def check_command(context: click.Context, /, *, fix: bool, as_json: bool, **values: object) -> None:
    """Compare the KV cache on disk with its index, both ways. May run beside a region.

    Exit code 1 if there are problems; with --fix, if some could not be mended.

    Example: bul cache check --fix
    """
    import msgspec

    folder = existing_folder(load(values))
    identities = [_checked(folder, namespace, fix=fix) for namespace in _namespaces(folder)]
    left = sum(len(one["problems_left"]) for one in identities)
    document = {
        "folder": str(folder),
        "ok": left == 0,
        "blocks": sum(one["blocks"] for one in identities),
        "bytes": sum(one["bytes"] for one in identities),
        "problems": sum(len(one["problems"]) for one in identities),
        "problems_left": left,
        "identities": identities,
    }
    if as_json:
        click.echo(msgspec.json.encode(document))
    else:
        _print(document, fix=fix)
    context.exit(0 if document["ok"] else 1)


def _namespaces(folder: Path) -> list[Namespace]:
    from bul.cache.tiers.disk.namespaces import namespaces
    from bul.errors import TierUnavailable

    try:
        return namespaces(folder)
    except OSError as error:
        message = f"the disk cache {folder} cannot be read: {error.strerror}"
        raise TierUnavailable(message, hint="name the folder with --persistence-dir") from error


def _checked(folder: Path, namespace: Namespace, *, fix: bool) -> dict[str, typing.Any]:
    """problems: as found. problems_left: those that are still there afterwards."""
    row: dict[str, typing.Any] = {"identity": named(namespace), "blocks": 0, "bytes": 0}
    problems = [namespace.problem] if namespace.problem else []
    if namespace.identity is None:
        return row | {"problems": problems, "problems_left": problems}
    if fix and namespace.problem:
        (namespace.path / "identity.json").unlink(missing_ok=True)  # written again when opened
    with opened(folder, namespace.identity) as tier:
        report = tier.check()
        row |= {"problems": [*problems, *report.problems]}
        left = row["problems"]
        if fix and left:
            tier.check(fix=True)
            report = tier.check()
            left = list(report.problems)
    return row | {"blocks": report.blocks, "bytes": report.bytes, "problems_left": left}


def _print(document: dict[str, typing.Any], *, fix: bool) -> None:
    for one in document["identities"]:
        for problem in one["problems"]:
            mended = fix and problem not in one["problems_left"]
            click.echo(f"{one['identity']}: {problem}{' - mended' if mended else ''}")
    megabytes = document["bytes"] / 1e6
    found = f"{document['problems']} problems" if document["problems"] else "no problem"
    if fix and document["problems"]:
        found += f", {document['problems_left']} left"
    elif document["problems"]:
        found += "; bul cache check --fix mends what can be mended"
    click.echo(f"{document['folder']}: {document['blocks']} blocks, {megabytes:.1f} MB, {found}")
