"""Accounts: who keys belong to."""

from keystore import models
from keystore.admin.base import Admin
from keystore.errors import AlreadyExistsError, InUseError


class AccountAdmin(Admin):
    """Adds, changes, lists and removes accounts."""

    def add_account(self, email: str, *, plan: str) -> models.Account:
        """Add an account on an existing plan.

        Raises:
            InvalidInputError, NotFoundError (the plan), AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(models.AccountInput, "account", email=email, plan=plan)
        with self._write():
            plan_id = self._find("plan", wanted.plan)
            self._refuse_taken_account(wanted.email)
            self._db.table("Accounts").insert({"email": wanted.email, "plan_id": plan_id})
            return self.account(wanted.email)

    def change_account(
        self,
        email: str,
        *,
        rename: str | None = None,
        plan: str | None = None,
        is_active: bool | None = None,
    ) -> models.Account:
        """Change what is given of an account. Its keys do not pass while it is not active.

        Raises:
            InvalidInputError, NotFoundError, AlreadyExistsError, WrongRoleError
        """
        with self._write():
            account = self.account(email)
            wanted = models.validated(
                models.AccountInput,
                "account",
                email=account.email if rename is None else rename,
                plan=plan or account.plan or "",
            )
            values: dict[str, object] = {}
            if wanted.email != account.email:
                if wanted.email.lower() != account.email.lower():
                    self._refuse_taken_account(wanted.email)
                values["email"] = wanted.email
            plan_id = self._find("plan", wanted.plan)
            if plan_id != account.plan_id:
                values["plan_id"] = plan_id
            if is_active is not None and is_active != account.is_active:
                values["is_active"] = is_active
            self._set("Accounts", account.account_id, values)
            return self.account(wanted.email)

    def remove_account(self, email: str, *, with_keys: bool = False) -> models.Account:
        """Remove an account; one that has keys or OAuth clients only ``with_keys``.

        Raises:
            NotFoundError, WrongRoleError
            InUseError: it has some.
        """
        with self._write():
            account = self.account(email)
            if (account.keys or account.clients) and not with_keys:
                also = f" and {account.clients} OAuth clients" if account.clients else ""
                raise InUseError(
                    f"account {account.email} has {account.keys} keys{also}, which would stop "
                    "working.",
                    hint="Use `keystore account set --inactive`, or add --with-keys.",
                )
            self._db.table("Accounts").delete(account.account_id)
            return account

    def accounts(self) -> list[models.Account]:
        """Return all accounts, by e-mail address."""
        with self.file.read():
            return [models.Account(**row) for row in self._query("accounts", account_id=None)]

    def account(self, email: str) -> models.Account:
        """Return one account.

        Raises:
            NotFoundError: there is none of that address.
        """
        account_id = self._find("account", email)
        return models.Account(**self._query("accounts", account_id=account_id)[0])

    def _refuse_taken_account(self, email: str) -> None:
        if self._is_taken("account", email):
            raise AlreadyExistsError(
                f"account {email!r} exists already.",
                hint="`keystore account list` shows the accounts.",
            )
