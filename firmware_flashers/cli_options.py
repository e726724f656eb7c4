"""Options that several commands share, said once: they are put into each command's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, get_type_hints

import typer


def with_options(
    act: Callable[..., None],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    first: Callable[[dict[str, Any]], AbstractContextManager[Any]],
) -> Callable[..., None]:
    """A command with the options of `act` and `options` besides.

    `first` makes the first argument of `act` from the values of `options`, for the time of the call.
    `defaults` are theirs (left out: None; `...`: required). Typer reads a command's options from its
    signature.
    """
    hints = get_type_hints(act, include_extras=True)
    _, *own = inspect.signature(act, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY

    def command(**given: Any) -> None:
        with first({name: given.pop(name) for name in options}) as made:
            act(made, **given)

    added = [
        inspect.Parameter(name, keyword, default=defaults.get(name), annotation=kind)
        for name, kind in options.items()
    ]
    command.__name__, command.__doc__ = act.__name__, act.__doc__
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(one.replace(kind=keyword) for one in own), *added]
    )
    command.__annotations__ = {one.name: hints[one.name] for one in own} | dict(options)
    return command


def number(text: str | int) -> int:
    """A whole number, hexadecimal with 0x."""
    # Defaults come through here too.
    try:
        return int(str(text), 0)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number; write 0x7E0 or 2016") from error


def can_id(text: str) -> typer.models.OptionInfo:
    """An option that takes a CAN identifier."""
    option: typer.models.OptionInfo = typer.Option(parser=number, metavar="ID", help=text)
    return option
