"""Services that keys may be used for, and the statuses that keys may have."""

from keystore import models
from keystore.admin.base import Admin
from keystore.errors import AlreadyExistsError


class ServiceAdmin(Admin):
    """Adds, changes and lists services and statuses."""

    def add_service(self, name: str) -> models.Service:
        """Add a service.

        Raises:
            InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(models.ServiceInput, "service", name=name)
        with self._write():
            if self._is_taken("service", wanted.name):
                raise AlreadyExistsError(
                    f"service {wanted.name!r} exists already.",
                    hint="`keystore service list` shows the services.",
                )
            self._db.table("Services").insert(wanted.model_dump())
            return self.service(wanted.name)

    def change_service(self, name: str, *, is_active: bool) -> models.Service:
        """Switch a service on or off.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._write():
            service = self.service(name)
            if service.is_active != is_active:
                self._set("Services", service.service_id, {"is_active": is_active})
            return self.service(name)

    def services(self) -> list[models.Service]:
        """Return all services, by name."""
        with self.file.read():
            return [models.Service(**row) for row in self._query("services", service_id=None)]

    def add_status(
        self, name: str, *, description: str | None = None, allows_access: bool = False
    ) -> models.Status:
        """Add a status that keys may have. It denies unless it says otherwise.

        Raises:
            InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(
            models.StatusInput,
            "status",
            name=name,
            description=description,
            allows_access=allows_access,
        )
        with self._write():
            if self._is_taken("status", wanted.name):
                raise AlreadyExistsError(
                    f"status {wanted.name!r} exists already.",
                    hint="`keystore key statuses` shows the statuses.",
                )
            self._db.table("APIKeyStatuses").insert(wanted.model_dump())
            found = self._query("statuses")
            return next(models.Status(**row) for row in found if row["name"] == wanted.name)

    def statuses(self) -> list[models.Status]:
        """Return all statuses, in the order they were added, with how many keys have each."""
        with self.file.read():
            return [models.Status(**row) for row in self._query("statuses")]

    def service(self, name: str) -> models.Service:
        """Return one service.

        Raises:
            NotFoundError: there is none of that name.
        """
        service_id = self._find("service", name)
        return models.Service(**self._query("services", service_id=service_id)[0])
