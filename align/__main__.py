"""`python -m align`."""

from align.cli import command_line

if __name__ == "__main__":
    command_line()
