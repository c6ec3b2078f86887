"""The command of schemathesis, and what an OpenAPI file cannot say: how permissions are written."""

import schemathesis
from hypothesis import strategies as st
from schemathesis.cli import schemathesis as command

NAME = st.from_regex(r"[a-z]{1,9}", fullmatch=True)
PERMISSIONS = st.recursive(
    NAME,
    lambda query: (
        st.tuples(query, st.sampled_from(["AND", "OR", "and"]), query).map(" ".join)
        | query.map("({})".format)
    ),
    max_leaves=5,
)

if __name__ == "__main__":
    schemathesis.openapi.format("permissions", PERMISSIONS)
    command()
