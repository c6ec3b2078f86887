"""What keys that are issued on a plan get of services."""

from typing import TYPE_CHECKING

from keystore import models, sql
from keystore.admin.base import Admin
from keystore.errors import NotFoundError

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("store")


def give_plan_quotas(conn: "sqlite3.Connection", first_key_id: int) -> None:
    """Give keys from an id on what their plans say of services that they have no quota for."""
    conn.execute(_Q["give_plan_quotas"], (first_key_id,))


class PlanQuotaAdmin(Admin):
    """Sets, removes and lists the quotas of plans. Keys that are there keep what they have."""

    def set_plan_quota(
        self, plan: str, service: str, quota: int, *, renewal: str = "never"
    ) -> models.PlanQuota:
        """Give each key that is issued or imported on a plan from now on so many units.

        Raises:
            NotFoundError (the plan, the service), InvalidInputError, WrongRoleError
        """
        wanted = models.validated(
            models.QuotaInput, "quota", service=service, quota=quota, renewal=renewal
        )
        with self._write() as conn:
            which = {"plan_id": self._find("plan", plan)}
            which["service_id"] = self._find("service", wanted.service)
            values = {**which, "quota": wanted.quota, "renewal": wanted.renewal}
            conn.execute(_Q["set_plan_quota"], values)
            return next(q for q in self._plan_quotas(plan) if q.service == wanted.service)

    def remove_plan_quota(self, plan: str, service: str) -> models.PlanQuota:
        """Take a quota from a plan; keys keep theirs.

        Raises:
            NotFoundError (the plan, its quota), WrongRoleError
        """
        with self._write() as conn:
            self._find("plan", plan)
            for quota in self._plan_quotas(plan):
                if quota.service == service:
                    conn.execute(_Q["remove_plan_quota"], {"plan": plan, "service": service})
                    return quota
            raise NotFoundError(
                f"plan {plan!r} has no quota for {service!r}.",
                hint="`keystore plan quotas` shows what plans have.",
            )

    def plan_quotas(self, plan: str | None = None) -> list[models.PlanQuota]:
        """Return the quotas of a plan, or of all, by plan and service.

        Raises:
            NotFoundError: no such plan.
        """
        with self.file.read():
            if plan is not None:
                self._find("plan", plan)
            return self._plan_quotas(plan)

    def _plan_quotas(self, plan: str | None) -> list[models.PlanQuota]:
        return [models.PlanQuota(**row) for row in self._query("plan_quotas", plan=plan)]
