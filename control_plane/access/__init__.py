"""Who may do what: operators' and trucks' credentials, enrolment, the broker's accounts, repeats."""
