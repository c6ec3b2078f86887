"""OAuth clients: an id and a secret in place of a token. A secret is returned once."""

import re
from typing import Annotated

import uuid_utils.compat
from pydantic import AfterValidator, BaseModel, Field

from keystore import models, tokens
from keystore.admin.base import Admin
from keystore.errors import AlreadyExistsError


def _client_id(text: str) -> str:
    # What needs no encoding in HTTP Basic (no colon), in a form (RFC 6749, 2.3.1), or in a URL.
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", text) is None:
        msg = "must be up to 200 of A-Z a-z 0-9 . _ -, with a letter or a digit first"
        raise ValueError(msg)
    return text


class ClientInput(models.Input):
    """An OAuth client to add."""

    account: models.Email
    client_id: Annotated[str, AfterValidator(_client_id)]


class OAuthClient(BaseModel):
    """An OAuth client as the store holds it, without its hash; ``account`` is the e-mail."""

    oauth_client_id: int
    client_id: str
    account_id: int
    account: str | None
    is_active: bool
    created_at: str
    updated_at: str


class IssuedClient(BaseModel):
    """An OAuth client with its fresh secret, which exists here and nowhere else."""

    client: OAuthClient
    secret: str = Field(repr=False)


class ClientAdmin(Admin):
    """Adds, changes, lists and removes OAuth clients."""

    def add_oauth_client(self, account: str, *, client_id: str | None = None) -> IssuedClient:
        """Add an OAuth client to an account and return it with its secret.

        ``client_id`` is up to 200 of ``A-Za-z0-9._-``; without one it is a new UUID.

        Raises:
            InvalidInputError, NotFoundError (the account), AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(
            ClientInput,
            "client",
            account=account,
            client_id=str(uuid_utils.compat.uuid7()) if client_id is None else client_id,
        )
        with self._write():
            account_id = self._find("account", wanted.account)
            if self._is_taken("client", wanted.client_id):
                raise AlreadyExistsError(
                    f"client {wanted.client_id!r} exists already.",
                    hint="`keystore client list` shows the clients.",
                )
            secret = tokens.new_client_secret(self.info.token_prefix)
            row = {"client_id": wanted.client_id, "account_id": account_id}
            hashed = {"client_secret_hash": tokens.hash_token(secret)}
            self._db.table("OAuthClients").insert(row | hashed)
            return IssuedClient(client=self._client(wanted.client_id), secret=secret)

    def rotate_oauth_client(self, client_id: str) -> IssuedClient:
        """Give an OAuth client a new secret; the old one stops at once, without an overlap.

        Where two secrets are to work for a while, add a second client.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._write():
            found = self._client(client_id)
            secret = tokens.new_client_secret(self.info.token_prefix)
            hashed = {"client_secret_hash": tokens.hash_token(secret)}
            self._set("OAuthClients", found.oauth_client_id, dict(hashed))
            return IssuedClient(client=self._client(client_id), secret=secret)

    def change_oauth_client(self, client_id: str, *, is_active: bool) -> OAuthClient:
        """Let an OAuth client pass, or not.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._write():
            found = self._client(client_id)
            if found.is_active != is_active:
                self._set("OAuthClients", found.oauth_client_id, {"is_active": is_active})
            return self._client(client_id)

    def remove_oauth_client(self, client_id: str) -> OAuthClient:
        """Remove an OAuth client. Its usage stays.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._write():
            found = self._client(client_id)
            self._db.table("OAuthClients").delete(found.oauth_client_id)
            return found

    def oauth_clients(self, *, account: str | None = None) -> list[OAuthClient]:
        """Return the OAuth clients, oldest first: all, or those of an account.

        Raises:
            NotFoundError: no such account.
        """
        with self.file.read():
            if account is not None:
                self._find("account", account)
            found = self._query("clients", client_id=None, account=account)
            return [OAuthClient(**row) for row in found]

    def oauth_client(self, client_id: str) -> OAuthClient:
        """Return one OAuth client.

        Raises:
            NotFoundError
        """
        with self.file.read():
            return self._client(client_id)

    def _client(self, client_id: str) -> OAuthClient:
        self._find("client", client_id)
        return OAuthClient(**self._query("clients", client_id=client_id, account=None)[0])
