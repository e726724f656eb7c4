"""`quarry release`: signed releases from an image on the engineer's desk, or in CI, to the office.

Everything but `upload`, `list` and `document publish` works without a network and without an office: on a
desk, in CI, and, by signing bundles, with an air-gapped machine that holds the keys. No private key is ever
written but by `keygen` and `--new-keys`. A first release, with the commands one below the other, stands in
cli/README.md.
"""

from __future__ import annotations

import typer

from cli.release_add import add_app
from cli.release_begin import begin_app
from cli.release_director import director_app
from cli.release_document import document_app
from cli.release_edit import edit_app
from cli.release_options import BEGIN, KEEP
from cli.release_reference import reference_app
from cli.release_sign import root_app, sign_app
from cli.release_upload import upload_app
from cli.release_usb import usb_app

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Signed releases: what is signed offline decides, the office only chooses among it.\n\n"
    "The usual way: keygen and init once, root sign; then for each release add, add-release, sign,"
    " publish, upload. `show` says what is missing at any moment.",
)
for part in (begin_app, reference_app, add_app, sign_app, edit_app, upload_app, usb_app):
    app.add_typer(part)
app.add_typer(root_app, name="root", rich_help_panel=BEGIN)
app.add_typer(director_app, name="director", rich_help_panel=BEGIN)
app.add_typer(document_app, name="document", rich_help_panel=KEEP)
