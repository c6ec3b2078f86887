"""Benchmarks: each measures keystore side by side with what bounds it, and reports ratios.

Absolute times say more about a machine than about a program, so they stand beside. A ratio is
always *our time / their time*: below 1 keystore is faster, and 2 means that it takes twice as long.

``python -m benchmarks.NAME [--quick] [--json FILE] [--into FOLDER]`` runs one and prints its table;
``python -m benchmarks [NAME ...] [--quick] [--into FOLDER]`` runs all, and draws one report.
"""
