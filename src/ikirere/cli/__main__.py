"""`python -m ikirere.cli`, the same as `ikirere`."""

from ikirere.cli.main import main

if __name__ == "__main__":
    main()
