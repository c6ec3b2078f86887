"""A fleet in one process, in virtual time, where everything goes wrong; and one of many edges."""
