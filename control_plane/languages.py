"""In which language an operator reads what trucks say: `?lang=`, else Accept-Language, else English."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request, Response

from shared.causes import LANGUAGES, Language

MOST_RANGES = 20


def best_language(accept: str | None) -> Language:
    """The known language that a client likes best (Accept-Language, RFC 9110, 12.5.4); English for none.

    What can't be read counts as not said.
    """
    best: Language = "en"
    most = 0.0
    for part in (accept or "").split(",")[:MOST_RANGES]:
        name, _, parameter = part.partition(";")
        key, _, value = parameter.strip().partition("=")
        try:
            quality = float(value) if key.strip().lower() == "q" else 1.0
        except ValueError:
            continue
        known = next((one for one in LANGUAGES if one == name.strip().lower().split("-")[0]), None)
        if known is not None and most < quality <= 1:
            best, most = known, quality
    return best


def _language(
    request: Request,
    response: Response,
    lang: Annotated[
        Language | None, Query(description="Of `why` and of the causes' texts; else by Accept-Language.")
    ] = None,
) -> Language:
    chosen = lang or best_language(request.headers.get("accept-language"))
    response.headers["Content-Language"] = chosen
    response.headers["Vary"] = "Accept-Language"
    return chosen


ReaderLanguage = Annotated[Language, Depends(_language)]
