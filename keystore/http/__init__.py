"""Answers checks over HTTP: one pure function from a request to a response, and a server."""
