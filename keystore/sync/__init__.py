"""Carries an origin's rows to a target, a target's rows to replicas, and usage back up.

``protocols`` says what a target is, ``engine`` moves rows and knows no driver, ``targets`` opens
a target by its URL; ``postgres``, ``files`` and ``memory`` are the targets.
"""
