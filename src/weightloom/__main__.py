"""``python -m weightloom`` is the ``weightloom`` command."""

from weightloom.cli import main

if __name__ == "__main__":
    main()
