"""Entry point of ``python -m weightloom``, equal to the ``weightloom`` command."""

from weightloom.cli import main

if __name__ == "__main__":
    main()
