"""`bul cache explain PROMPT`: why it would be a hit, or would not.

Without --url it reads the folder that the replicas share, with the keys that they would make; with
it a replica looks into its own RAM too. It refuses to ask a replica about another tenant: there the
API key alone says who asks.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

import click
import msgspec

from bul.cli.cache_disk import existing_folder, folder_option, opened
from bul.cli.live import ask_replica, live_options, read_key
from bul.cli.options import load, setting

if typing.TYPE_CHECKING:
    from bul.cache.explain import Explanation, OtherIdentity
    from bul.config import Settings
    from bul.inference.contract import ModelCore

__all__ = ["explain_command"]


@click.command("explain")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="PROMPT is the first message of a chat.")
@click.option("--tenant", default="", help="The key's name; none when replicas ask for no key.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@live_options
@setting("serve.engine", "--engine")
@setting("serve.model", "--model")
@folder_option
def explain_command(
    prompt: str,
    *,
    chat: bool,
    tenant: str,
    as_json: bool,
    url: str,
    key_file: Path | None,
    **values: object,
) -> None:
    """Which blocks of PROMPT (`-`: standard input) are cached, and what broke the chain.

    Exit code 1 if not a single block would be loaded.

    Example: bul cache explain --chat "Summarise this report: ..."
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if url:
        found = _asked(url, text, chat=chat, key=read_key(key_file))
    else:
        found = _on_disk(load(values), text, chat=chat, tenant=tenant)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        where = "cached" if url else "on disk"
        for line in (f"{found['cached']} of {found['blocks']} blocks {where}", *found["reasons"]):
            click.echo(line)
    click.get_current_context().exit(0 if found["cached"] else 1)


def _asked(url: str, text: str, *, chat: bool, key: str) -> dict[str, typing.Any]:
    """What the replica at `url` says."""
    models = ask_replica(url, "/v1/models", key=key)
    body: dict[str, object] = {"model": models["data"][0]["id"]}
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    found: dict[str, typing.Any] = ask_replica(url, "/cache/explain", key=key, body=body)
    return found


def _on_disk(settings: Settings, text: str, *, chat: bool, tenant: str) -> dict[str, typing.Any]:
    from bul.cli.events import EventLog
    from bul.cli.serve import make_core

    folder = existing_folder(settings)
    core = make_core(settings, EventLog("text", sys.stderr))
    try:
        result = _explain(settings, core, _tokens(core, text, chat=chat), tenant, folder)
    finally:
        core.close()
    return dataclasses.asdict(result)


def _tokens(core: ModelCore, text: str, *, chat: bool) -> list[int]:
    from bul.inference.contract import ChatMessage

    if chat:
        return core.tokenize_chat([ChatMessage(role="user", content=text)])
    return core.tokenize(text, special=False)


def _explain(
    settings: Settings, core: ModelCore, tokens: list[int], tenant: str, folder: Path
) -> Explanation:
    from bul.cache.explain import explain
    from bul.service.auth import tenant_salt

    serve = settings.serve
    salt = tenant_salt(serve.cache_secret, tenant, share=serve.share_between_tenants)
    identity = dataclasses.replace(core.identity, quantisation=settings.cache.quantisation)
    here = _presence(folder, identity.digest(), salt, tokens, core.block_tokens)
    return explain(
        {"disk": here},
        tokens=len(tokens),
        block_tokens=core.block_tokens,
        identity=dataclasses.asdict(identity),
        others=_others(folder, identity.digest(), salt, tokens),
    )


def _others(folder: Path, ours: bytes, salt: bytes, tokens: list[int]) -> list[OtherIdentity]:
    """The same prompt under every other identity of the folder."""
    from bul.cache.explain import OtherIdentity
    from bul.cache.tiers.disk.identities import stored_identities

    found = []
    for fields in stored_identities(folder):
        digest, block_tokens = fields.get("digest"), fields.get("block_tokens")
        if not isinstance(digest, str) or digest == ours.hex() or not isinstance(block_tokens, int):
            continue
        here = _presence(folder, bytes.fromhex(digest), salt, tokens, block_tokens)
        found.append(OtherIdentity(fields=fields, blocks=[*here, False].index(False)))
    return found


def _presence(
    folder: Path, digest: bytes, salt: bytes, tokens: list[int], block_tokens: int
) -> list[bool]:
    from bul.blocks.chain import block_keys, chain_root

    with opened(folder, digest) as tier:
        keys = block_keys(chain_root(digest, salt), tokens, block_tokens)
        return [tier.match([key]) == 1 for key in keys]
