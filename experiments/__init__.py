"""Command-line experiments: `python -m experiments --help`. Tables and figures are made from records alone."""
