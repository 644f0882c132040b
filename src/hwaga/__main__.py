"""``python -m hwaga``."""

from hwaga.cli import main

if __name__ == "__main__":
    main()
