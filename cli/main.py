"""The command line: every verb of the product, loaded only when it is called."""

from __future__ import annotations


def run() -> None:
    print("hello")


if __name__ == "__main__":
    run()
