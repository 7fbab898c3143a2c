"""`python -m pocqueue`: the command line if no `pocqueue` is on the PATH."""

from pocqueue.cli import main

if __name__ == "__main__":
    main()
