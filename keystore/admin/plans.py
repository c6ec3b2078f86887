"""Plans: what an account's keys may do."""

from keystore import models, sql
from keystore.admin.base import Admin
from keystore.errors import AlreadyExistsError, InUseError

_Q = sql.named("store")


class PlanAdmin(Admin):
    """Adds, changes, lists and removes plans."""

    def add_plan(
        self,
        name: str,
        *,
        max_staleness_seconds: int | None = None,
        stale_action: str = "deny",
        rate_limit: int | None = None,
        rate_window_seconds: int | None = None,
        rate_burst: int | None = None,
    ) -> models.Plan:
        """Add a plan.

        ``max_staleness_seconds`` bounds how old a replica's data may be for keys of this plan;
        past it ``stale_action`` decides, ``deny`` (answer 503) or ``allow``. Each of its keys may
        pass ``rate_limit`` checks in ``rate_window_seconds`` at each edge, and ``rate_burst`` of
        them at once (default: all).

        Raises:
            InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(
            models.PlanInput,
            "plan",
            name=name,
            max_staleness_seconds=max_staleness_seconds,
            stale_action=stale_action,
            rate_limit=rate_limit,
            rate_window_seconds=rate_window_seconds,
            rate_burst=rate_burst,
        )
        with self._write():
            self._refuse_taken_plan(wanted.name)
            self._db.table("Plans").insert(wanted.model_dump())
            return self._plan(wanted.name)

    def change_plan(
        self,
        name: str,
        *,
        rename: str | None = None,
        max_staleness_seconds: int | None = None,
        stale_action: str | None = None,
        rate_limit: int | None = None,
        rate_window_seconds: int | None = None,
        rate_burst: int | None = None,
    ) -> models.Plan:
        """Change what is given of a plan; 0 takes a bound, the rate or the burst away.

        Raises:
            InvalidInputError, NotFoundError, AlreadyExistsError, WrongRoleError
        """
        with self._write():
            plan = self._plan(name)
            bound = plan.max_staleness_seconds
            if max_staleness_seconds is not None:
                bound = max_staleness_seconds or None
            limit, window, burst = plan.rate_limit, plan.rate_window_seconds, plan.rate_burst
            if rate_limit == 0:
                limit = window = burst = None
            else:
                limit = limit if rate_limit is None else rate_limit
                window = window if rate_window_seconds is None else rate_window_seconds
            if rate_burst is not None:
                burst = rate_burst or None
            wanted = models.validated(
                models.PlanInput,
                "plan",
                name=plan.name if rename is None else rename,
                max_staleness_seconds=bound,
                stale_action=stale_action or plan.stale_action,
                rate_limit=limit,
                rate_window_seconds=window,
                rate_burst=burst,
            )
            if wanted.name != plan.name:
                self._refuse_taken_plan(wanted.name)
            new = wanted.model_dump()
            changed = {key: value for key, value in new.items() if value != getattr(plan, key)}
            self._set("Plans", plan.plan_id, changed)
            return self._plan(wanted.name)

    def remove_plan(self, name: str) -> models.Plan:
        """Remove a plan that no account is on.

        Raises:
            NotFoundError, WrongRoleError
            InUseError: says by whom.
        """
        with self._write() as conn:
            plan = self._plan(name)
            users = [row[0] for row in conn.execute(_Q["plan_users"], (plan.plan_id,))]
            if users:
                more = (
                    f" and {plan.accounts - len(users)} more" if plan.accounts > len(users) else ""
                )
                raise InUseError(
                    f"plan {plan.name!r} is in use by {', '.join(users)}{more}.",
                    hint="Move them to another plan with `keystore account set --plan`.",
                )
            self._db.table("Plans").delete(plan.plan_id)
            return plan

    def plans(self) -> list[models.Plan]:
        """Return all plans, by name."""
        with self.file.read():
            return [models.Plan(**row) for row in self._query("plans", plan_id=None)]

    def _plan(self, name: str) -> models.Plan:
        plan_id = self._find("plan", name)
        return models.Plan(**self._query("plans", plan_id=plan_id)[0])

    def _refuse_taken_plan(self, name: str) -> None:
        if self._is_taken("plan", name):
            raise AlreadyExistsError(
                f"plan {name!r} exists already.", hint="`keystore plan list` shows the plans."
            )
