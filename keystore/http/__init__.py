"""Answers checks over HTTP: a pure function from a request to a response, and what carries it."""
