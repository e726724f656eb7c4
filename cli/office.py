"""What the verbs that talk to an office share: where it is, who asks, and its answers as tables or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import httpx
import typer
from rich.console import Console
from rich.table import Table

from firmware_flashers.cli_options import with_options
from shared.errors import OtaError

REQUEST_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 300.0

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="QUARRY_DATA", help="Data folder of an office on this machine: says where it is."
    ),
]
OfficeUrl = Annotated[
    str | None,
    typer.Option(
        "--office", envvar="QUARRY_OFFICE", help="Address of the office, for example http://host:8080."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", envvar="QUARRY_TOKEN_FILE", help="File with the admin token (DATA/admin-token)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]


class OfficeUnreachable(OtaError):
    """No office answers there."""

    code = "office_unreachable"
    retryable = True
    advice = "Start it (quarry serve --data DIR), or give --data DIR, or --office URL and --token-file FILE."


class OfficeRefused(OtaError):
    """The office answered, and said no. `status` is the HTTP status."""

    code = "office_refused"

    def __init__(self, message: str, *, status: int, code: str, advice: str) -> None:
        super().__init__(message, code=code, advice=advice)
        self.status = status


def find_office(data: Path | None, url: str | None, token_file: Path | None) -> tuple[str, str]:
    """The office's address and the admin token. Raises OfficeUnreachable when either is not known."""
    if data is not None:
        token_file = token_file or data / "admin-token"
        if url is None:
            try:
                url = json.loads((data / "endpoints.json").read_text(encoding="utf-8"))["url"]
            except (OSError, ValueError, KeyError) as error:
                raise OfficeUnreachable(f"no office runs with the data folder {data}") from error
    if url is None or token_file is None:
        raise OfficeUnreachable("it is not said which office is meant")
    try:
        return url, token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OfficeUnreachable(f"the admin token can't be read: {error}") from error


class OfficeClient:
    """A few HTTP calls to one office, as a resource."""

    def __init__(self, data: Path | None, url: str | None, token_file: Path | None) -> None:
        base_url, token = find_office(data, url, token_file)
        self._url = base_url
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """One request below `/api/v1`; returns the JSON object. Raises OfficeUnreachable or OfficeRefused."""
        try:
            answer = self._http.request(method, f"/api/v1{path}", **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OfficeUnreachable(f"the office at {self._url} does not answer: {error}") from error
        try:
            body = answer.json()
        except ValueError as error:
            raise OfficeUnreachable(f"what answers at {self._url} is no office") from error
        if answer.is_error:
            fields = "; ".join(f"{k}: {v}" for k, v in (body.get("fields") or {}).items())
            raise OfficeRefused(
                f"{body.get('detail', answer.reason_phrase)}{f' ({fields})' if fields else ''}",
                status=answer.status_code,
                code=str(body.get("code", "http_error")),
                advice=str(body.get("advice", "See the office's log.")),
            )
        found: dict[str, Any] = body
        return found

    def pages(self, path: str, *, most: int, **params: Any) -> list[dict[str, Any]]:
        """The first `most` items of a list, over as many pages as that takes."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(items) < most:
            query = {k: v for k, v in params.items() if v is not None}
            query |= {"limit": min(200, most - len(items))} | ({"cursor": cursor} if cursor else {})
            page = self.call("GET", path, params=query)
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return items

    def change(self, path: str, act: str) -> dict[str, Any]:
        """Read a thing and act on just the version that was read (If-Match)."""
        version = self.call("GET", path)["version"]
        return self.call("POST", f"{path}/{act}", headers={"If-Match": f'"{version}"'})


def with_office(act: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, `client`, is filled from `--data`, `--office`, `--token-file`."""
    where = {"data": Data, "office": OfficeUrl, "token_file": TokenFile}
    return with_options(
        act, where, {}, lambda given: OfficeClient(given["data"], given["office"], given["token_file"])
    )


def print_json(value: object) -> None:
    """Exactly one JSON document."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def print_rows(rows: Iterable[Sequence[object]], columns: Sequence[str], *, title: str, none: str) -> None:
    """A table, or a sentence when there is nothing to show."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        # On a narrow terminal the first column stays whole: an id in pieces can't be copied.
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console()
    if table.row_count:
        console.print(table)
    else:
        console.print(none)


def short_time(value: str | None) -> str:
    """A time of the API, to the second, for a table (UTC)."""
    return "" if value is None else value[:19].replace("T", " ")
