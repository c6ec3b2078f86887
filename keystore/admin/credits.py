"""Credits of accounts: granted, charged by the price in force, and never below zero.

Each row of the ledger moves the balance with it, in the database. A charge looks everything up
first, so what is missing is named before anything is written; then the ledger and the UsageLog get
their rows in one transaction. Asked again with the same request id, it answers what it has done,
whatever has become of the model since. The ledger is the origin's: a replica has none.
"""

from typing import TYPE_CHECKING, Any

from keystore import clock, credit_models, db, models, pricing, sql, tokens
from keystore.admin.prices import PriceAdmin
from keystore.errors import (
    ConflictingRequestError,
    InsufficientCreditsError,
    InvalidInputError,
    NotFoundError,
    WrongRoleError,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_Q = sql.named("credits")
_AMOUNT_HINT = "Nothing was written; an amount is a number of credits, like 12.5."


class CreditAdmin(PriceAdmin):
    """Grants and charges credits."""

    def grant(
        self, account: str, amount: str, *, request_id: str | None = None, note: str | None = None
    ) -> credit_models.LedgerEntry:
        """Give an account an amount of credits, written as a decimal number.

        Raises:
            NotFoundError, InvalidInputError, WrongRoleError
            ConflictingRequestError: the account had another grant by that request id.
        """
        try:
            exact = pricing.parse(amount)
        except ValueError as error:
            raise InvalidInputError(f"grant: {error}.", hint=_AMOUNT_HINT) from None
        if exact.is_rounded or not exact.nano:
            raise InvalidInputError(
                f"grant: {amount} is no whole number of nano-credits (1e-9) above zero.",
                hint=_AMOUNT_HINT,
            )
        wanted = models.validated(
            credit_models.EntryInput, "grant", request_id=request_id, note=note
        )
        with self._write():
            account_id = self._find("account", account)
            values = {"kind": "grant", "amount_nano": exact.nano, **wanted.model_dump()}
            before = self._done_before(account_id, values)
            if before is not None:
                return before
            balance = self._balance(account_id)
            if balance + exact.nano > pricing.MAX_NANO:
                raise InvalidInputError(
                    f"{account} would have {pricing.text(balance + exact.nano)} credits, more than "
                    f"{pricing.MAX_NANO // pricing.NANO}.",
                    hint="Nothing was written.",
                )
            return self._enter(account_id, balance, {**values, "occurred_at": clock.utc_text()})

    def charge(
        self,
        account: str,
        model: str,
        *,
        input_tokens: int,
        output_tokens: int = 0,
        request_id: str | None = None,
        key: str | None = None,
    ) -> credit_models.LedgerEntry:
        """Charge an account for a model's tokens, and log them as usage of ``key``.

        A key is named by its UUID or its token; without one the usage is of the account's session.

        Raises:
            NotFoundError: the account, key, model (with the nearest names) or its provider, or
                there is no price in force.
            InsufficientCreditsError: says what it costs and what there is.
            ConflictingRequestError: the account had another charge by that request id.
            InvalidInputError, WrongRoleError
        """
        wanted = models.validated(
            credit_models.ChargeInput,
            "charge",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            request_id=request_id,
        )
        with self._write():
            account_id = self._find("account", account)
            values: dict[str, Any] = {"kind": "charge", "model": model, **wanted.model_dump()}
            before = self._done_before(account_id, values)
            if before is not None:
                return before
            now = clock.utc_text()
            principal_type, principal_id = self._principal(account_id, account, key)
            model_id = self._find("model", model)
            pricing_id, amount = self._cost(model_id, model, wanted, now)
            balance = self._balance(account_id)
            if balance < amount:
                raise InsufficientCreditsError(
                    f"{account} has {pricing.text(balance)} credits; this costs "
                    f"{pricing.text(amount)}.",
                    hint="`keystore credits grant` gives it more.",
                )
            usage = {
                "principal_type": principal_type,
                "principal_id": principal_id,
                "account_id": account_id,
                "service_id": None,
                "amount": wanted.input_tokens + wanted.output_tokens,
                "request_id": wanted.request_id,
                "occurred_at": now,
            }
            (usage_id,) = self.file.conn.execute(_Q["log_usage"], usage).fetchone()
            return self._enter(
                account_id,
                balance,
                {
                    **values,
                    "amount_nano": -amount,
                    "model_pricing_id": pricing_id,
                    "usage_id": usage_id,
                    "occurred_at": now,
                },
            )

    def balance(self, account: str) -> int:
        """Return what an account has, in nano-credits.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._ledger():
            return self._balance(self._find("account", account))

    def statement(
        self, account: str, *, after: int = 0, limit: int = -1
    ) -> list[credit_models.LedgerEntry]:
        """Return the ledger of an account after an entry, the oldest first.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._ledger():
            found = {"account_id": self._find("account", account), "after": after, "limit": limit}
            return [credit_models.LedgerEntry(**row) for row in self._rows("statement", **found)]

    def _principal(self, account_id: int, account: str, key: str | None) -> tuple[str, int]:
        if key is None:
            return "session", account_id
        names = tokens.key_names(key)
        found = next(iter(self._rows("key_of_account", account_id=account_id, **names)), None)
        if found is None:  # (what was typed may be a token)
            raise NotFoundError(
                f"{account} has no such key.",
                hint="Name it by its UUID (`keystore key list`) or by its token.",
            )
        return "api_key", found["api_key_id"]

    def _cost(
        self, model_id: int, model: str, wanted: credit_models.ChargeInput, now: str
    ) -> tuple[int, int]:
        """Return the price in force, and what the tokens cost by it."""
        values = {"model_id": model_id, "now": now}
        found = self.file.conn.execute(_Q["price_in_force"], values).fetchone()
        pricing_id, input_per_1k, output_per_1k, provider, is_active = found
        if provider is None:
            raise NotFoundError(
                f"the provider of model {model!r} is missing.", hint="Run `keystore doctor`."
            )
        if pricing_id is None:
            raise NotFoundError(
                f"model {model!r} of {provider} has no price in force.",
                hint="`keystore model price` gives it one.",
            )
        if not is_active:
            raise NotFoundError(
                f"model {model!r} of {provider} is not active.",
                hint="`keystore model list` shows the models; UPDATE Models SET is_active = 1 "
                "lets one be used again.",
            )
        return pricing_id, pricing.cost(
            wanted.input_tokens, wanted.output_tokens, input_per_1k, output_per_1k
        )

    def _done_before(
        self, account_id: int, values: dict[str, Any]
    ) -> credit_models.LedgerEntry | None:
        """Return what a request has done already, if it is the same one."""
        request_id = values["request_id"]
        if request_id is None:
            return None
        same = {"request_id": request_id, "account_id": account_id, "kind": values["kind"]}
        row = next(iter(self._rows("entry_of_request", **same)), None)
        if row is None:
            return None
        # (not the price: it may have changed between the two)
        is_grant = values["kind"] == "grant"
        fields = ["amount_nano"] if is_grant else ["model", "input_tokens", "output_tokens"]
        if any(row[name] != values.get(name) for name in fields):
            raise ConflictingRequestError(
                f"request {request_id} was another {values['kind']}, entry {row['ledger_id']}.",
                hint="A request id stands for one request; take a new one.",
            )
        return credit_models.LedgerEntry(**row)

    def _ledger(self) -> "AbstractContextManager[object]":
        if not self.info.is_origin:
            raise WrongRoleError(
                f"{self.file.path} is a replica of store {self.info.origin_id}, and has no ledger.",
                hint="Ask at its origin, or the hub: `keystore hub usage`.",
            )
        return self.file.read()

    def _balance(self, account_id: int) -> int:
        return int(db.scalar(self.file.conn, _Q["balance"], account_id))

    def _enter(
        self, account_id: int, balance: int, values: dict[str, Any]
    ) -> credit_models.LedgerEntry:
        empty = dict.fromkeys(
            ("note", "model", "model_pricing_id", "input_tokens", "output_tokens", "usage_id")
        )
        entry = {
            **empty,
            **values,
            "account_id": account_id,
            "balance_nano": balance + values["amount_nano"],
        }
        return credit_models.LedgerEntry(**self._rows("insert_entry", **entry)[0])
