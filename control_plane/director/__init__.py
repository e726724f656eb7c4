"""The director: what each truck shall have, signed for it alone; and what trucks prove of themselves."""
