"""Commands on what models cost: providers, models, prices. Prices are credits for 1,000 tokens."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore.cli.common import (
    plural,
    progress_bar,
    show,
    show_table,
    store_options,
    wants_json,
    with_credits,
)
from keystore.cli.credits import show_priced

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from keystore.admin.prices import PriceImport


def _price_options(command: "Callable[..., Any]") -> "Callable[..., Any]":
    for kind in ("output", "input"):
        command = click.option(
            f"--{kind}-per-1k",
            required=True,
            metavar="CREDITS",
            help=f"What 1,000 {kind} tokens cost.",
        )(command)
    return command


@click.group()
def provider() -> None:
    """Providers of models."""


@provider.command("add")
@click.argument("name")
@store_options
def provider_add(db_path: Path, name: str) -> None:
    """Add a provider.

    \b
    Example:
      keystore provider add openai
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        added = store.add_provider(name)
    show(added, f"Added provider {added.name}.")


@provider.command("list")
@store_options
def provider_list(db_path: Path) -> None:
    """List the providers.

    \b
    Example:
      keystore provider list
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.providers()
    columns = ("name", "models", "created_at")
    show_table(rows, columns, empty="No providers yet; `keystore provider add NAME` adds one.")


@click.group()
def model() -> None:
    """Models, and what their tokens cost."""


@model.command("add")
@click.argument("name")
@click.option("--provider", "provider_name", required=True, metavar="NAME", help="Whose it is.")
@_price_options
@store_options
def model_add(
    db_path: Path, name: str, provider_name: str, input_per_1k: str, output_per_1k: str
) -> None:
    """Add a model of a provider that is there, with its price.

    \b
    Example:
      keystore model add gpt-5-chat --provider openai --input-per-1k 0.00125 --output-per-1k 0.01
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        added = store.add_model(
            name, provider=provider_name, input_per_1k=input_per_1k, output_per_1k=output_per_1k
        )
    show(with_credits(added.model_dump()), f"Added model {added.name} of {added.provider}.")


@model.command("price")
@click.argument("name")
@_price_options
@click.option(
    "--from",
    "effective_from",
    metavar="TIME",
    help="When it begins: an ISO 8601 time to come (UTC). Default: with the next second.",
)
@store_options
def model_price(
    db_path: Path, name: str, input_per_1k: str, output_per_1k: str, effective_from: str | None
) -> None:
    """Give a model a new price. What was charged before stays explained by the old one.

    \b
    Example:
      keystore model price gpt-5-chat --input-per-1k 0.001 --output-per-1k 0.008 --from 2030-01-01
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        price = store.set_price(
            name,
            input_per_1k=input_per_1k,
            output_per_1k=output_per_1k,
            effective_from=effective_from,
        )
    show(
        with_credits(price.model_dump()),
        f"Model {name} has a new price from {price.effective_from} UTC on.",
    )


@model.command("list")
@click.option("--provider", "provider_name", metavar="NAME", help="Only those of this one.")
@store_options
def model_list(db_path: Path, provider_name: str | None) -> None:
    """List the models, with the price that is in force.

    \b
    Example:
      keystore model list --provider openai
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.list_models(provider=provider_name)
    columns = ("name", "provider", "input_per_1k", "output_per_1k", "is_active")
    show_priced(rows, columns, empty="No models yet; `keystore model add NAME` adds one.")


@model.command("prices")
@click.argument("name")
@store_options
def model_prices(db_path: Path, name: str) -> None:
    """List the prices of a model, the newest first; each is in force until the next begins.

    \b
    Example:
      keystore model prices gpt-5-chat
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.prices(name)
    columns = ("effective_from", "input_per_1k", "output_per_1k", "created_at")
    show_priced(rows, columns, empty=f"Model {name} has no price; `keystore model price`.")


@model.command("import")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@store_options
def model_import(db_path: Path, path: Path) -> None:
    """Take over the models of a price list, with their providers: JSON as LiteLLM keeps it.

    All or nothing, and safe to repeat. Models without a price for tokens are left out, and said.

    \b
    Example:
      keystore model import model_prices_and_context_window.json
    """
    from keystore.store import Store

    with Store.open(db_path) as store, progress_bar("models") as on_progress:
        done = store.import_prices(path, on_progress=on_progress)
    if wants_json():
        skipped = [{"name": name, "reason": reason} for name, reason in done.skipped]
        show({**asdict(done), "skipped": skipped}, "")
        return
    click.echo(
        f"Added {plural(done.added, 'model')} and {plural(done.providers, 'provider')}; "
        f"repriced {done.repriced}, left {done.unchanged} unchanged; {len(done.rounded)} have a "
        f"price that was rounded; skipped {len(done.skipped)}."
    )
    if done.skipped:
        show_table(_by_reason(done), ("skipped_because", "models", "such_as"), empty="")


@dataclass(frozen=True, slots=True)
class _Skipped:
    skipped_because: str
    models: int
    such_as: str


def _by_reason(done: "PriceImport") -> list[_Skipped]:
    names: dict[str, list[str]] = {}
    for name, reason in done.skipped:
        names.setdefault(reason, []).append(name)
    return [_Skipped(why, len(some), ", ".join(some[:3])) for why, some in names.items()]


COMMANDS: tuple[click.Command, ...] = (provider, model)
