"""What a person at the truck may do and see."""
