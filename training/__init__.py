"""How the bundled model is made: pictures and words in, a Z-Image checkpoint out. ``python -m training --help``
lists the stages.

Nothing in the package ``hwaga`` imports this one.
"""
