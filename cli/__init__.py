"""The desk: one thin file per verb; rooms are imported only when a verb needs them."""
